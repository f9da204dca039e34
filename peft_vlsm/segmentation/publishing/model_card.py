"""The model card of a fine-tuning run: `README.md`, written from what the run left in its output folder."""

import math
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.card_mark import CARD, is_replaceable, marked
from peft_vlsm.segmentation.publishing.run_folder import RunFolder, is_hub_name, read_run
from peft_vlsm.segmentation.publishing.snippet import IMAGE, loading_snippet

# By their keys in all_results.json, behind test_ or val_.
METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95 (pixels)",
    "precision": "Precision",
    "recall": "Recall",
}
# Of a run's arguments these are paths, or where things went, and no hyper-parameters.
_NO_HYPER_PARAMETER = re.compile(
    r"(test|val)_.*|.*(_dir|_path|_parameters|_seconds|_column|_name|_to|token)"
    r"|(push|hub|report|resume|overwrite|checkpoint\w*|dataloader|with)_.*|train_steps"
)
_METHODS = {
    "dense": "Dense adapters of [VLSM-Adapter](https://arxiv.org/abs/2405.06196): small bottleneck layers inside the "
    "encoders",
    "shallow": "Shallow adapters of [VLSM-Adapter](https://arxiv.org/abs/2405.06196): small bottleneck layers on what "
    "the encoders hand to the decoder",
    "lora": "A LoRA adapter",
    "ia3": "An IA3 adapter",
    "decoder": "The fine-tuned decoder, without the encoders,",
    "full": "A model fine-tuned as a whole, which began",
}
_PLACES = {"V": "vision encoder", "L": "text encoder", "C": "conditional embedding"}


def write_model_card(folder: str | Path, repo_id: str | None = None) -> bool:
    """
    Writes `README.md` into the output folder of `examples/finetune.py`, with what the run's files say and no more.
    It replaces peft's template and a card of ours, but none that someone edited, see [`is_replaceable`].

    Its metadata have, for the Hub: `library_name` and `base_model_relation` (`peft` and `adapter` for an adapter, a
    LoRA and an IA3; `peft_vlsm` and `finetune` for a decoder, which no other library loads; `transformers` and
    `finetune` for a full model), `base_model` where that is a name on the Hub, `pipeline_tag`, `tags` and, in
    `model-index`, the test metrics of `all_results.json`. A licence is not among the run's files and is left out.

    Args:
        folder (`str` or `Path`): see [`read_run`]. Where `all_results.json` or `samples.png` are missing, the card
            says so or shows no picture. The prompts are named where the results have `override_prompt` (a text),
            `test_prompts` (a list of texts) or `prompt` (`random` or `p0` to `p9`).
        repo_id (`str`, *optional*): the repository's name on the Hub, for title and snippet. Default: the folder's
            name as title, and its path as it was given in the snippet.

    Returns:
        `bool`: True where the card was written, False where a card is there that someone wrote or edited; it is kept.

    Raises:
        InputError: there is no fine-tuned model in the folder, its files are broken, or it cannot be written.
    """
    run = read_run(folder)
    file = run.folder / CARD
    if file.is_file() and not is_replaceable(file):
        return False
    text = model_card(run, repo_id)
    staging = run.folder / f".{CARD}.writing"
    try:
        staging.write_text(text, encoding="utf-8", newline="\n")
        os.replace(staging, file)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}; free space there") from error
    return True


def model_card(run: RunFolder, repo_id: str | None = None) -> str:
    """
    The card's text, metadata included.

    Args:
        run ([`RunFolder`]): what the card is about.
        repo_id (`str`, *optional*): see [`write_model_card`].

    Returns:
        `str`: Markdown that [`~huggingface_hub.ModelCard`] reads, with our mark as its last line.
    """
    title = repo_id.split("/")[-1] if repo_id else run.folder.resolve().name
    sections = [
        f"# {title}",
        _summary(run),
        _results_section(run),
        f"## Use\n\n```python\n{loading_snippet(run, repo_id or str(run.folder), _example_prompt(run))}\n```",
        f"Put an image of yours in the place of `{IMAGE}`. {_base_model_note(run)}".rstrip(),
        _hyper_parameter_section(run),
        _limits(run),
    ]
    body = "\n\n".join(section for section in sections if section)
    return marked(f"---\n{_card_data(run, title).to_yaml()}\n---\n\n{body}\n")


def _card_data(run: RunFolder, title: str) -> ModelCardData:
    adapter = run.kind == "adapter"
    data_name, data_id = _data_set(run)
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Text-prompted image segmentation",
            dataset_type=data_id or "custom",
            dataset_name=data_name,
            dataset_split="test",
            metric_type=key,
            metric_name=METRICS[key],
            metric_value=value,
        )
        for key, value in _metrics(run, "test").items()
    ]
    return ModelCardData(
        library_name={"adapter": "peft", "decoder": "peft_vlsm", "full": "transformers"}[run.kind],
        base_model=run.hub_base,
        base_model_relation="adapter" if adapter else "finetune",
        pipeline_tag="image-segmentation",
        datasets=data_id,
        tags=["peft_vlsm", "vision-language", run.family.model_type, *([run.method] if adapter else [])],
        model_name=title if results else None,
        eval_results=results or None,
    )


def _data_set(run: RunFolder) -> tuple[str, str | None]:
    """The name to show, and the name on the Hub."""
    name = run.results.get("dataset_name")
    if name and is_hub_name(name):
        return name, name
    folder = name or run.results.get("data_dir") or run.results.get("train_data_dir")
    return (Path(folder).resolve().name if folder else "unnamed data"), None


def _metrics(run: RunFolder, split: str) -> dict[str, float]:
    names = {key: f"{split}_{key}" for key in METRICS}
    return {key: run.results[name] for key, name in names.items() if _is_figure(run.results.get(name))}


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _summary(run: RunFolder) -> str:
    base = f"[{run.hub_base}](https://huggingface.co/{run.hub_base})" if run.hub_base else _local_base(run)
    sentences = [f"{_METHODS[run.method]} {'from' if run.kind == 'full' else 'for'} {base}."]
    sentences.append("Made with `peft_vlsm` for image segmentation by text prompts.")
    facts = _settings(run)
    sentences += [f"Settings: {'; '.join(facts)}."] if facts else []
    trainable, total = run.results.get("trainable_parameters"), run.results.get("total_parameters")
    if _is_figure(trainable) and _is_figure(total) and total:
        sentences.append(f"{trainable:,} of {total:,} parameters were trained ({trainable / total:.2%}).")
    return " ".join(sentences)


def _settings(run: RunFolder) -> list[str]:
    settings, facts = run.settings, []
    if run.method in ("dense", "shallow"):
        letters = settings.get("variant") or ""
        facts += [f"variant {letters} ({', '.join(_PLACES[letter] for letter in letters)})"] if letters else []
        factor = settings.get("reduction_factor")
        facts.append(f"width {settings.get('adapter_dim')}" if factor is None else f"reduction factor {factor:g}")
        facts += [f"width {settings['cond_adapter_dim']} at the conditional embedding"] if "C" in letters else []
    if run.method == "lora":
        facts.append(f"rank {settings.get('r')}, alpha {settings.get('lora_alpha')}")
    if settings.get("modules_to_save"):
        facts.append(f"trained along: {', '.join(settings['modules_to_save'])}")
    return facts


def _local_base(run: RunFolder) -> str:
    kind = f"a {run.family.name}"
    return kind if run.base_model is None else f"{kind} in the folder `{Path(run.base_model).name}`"


def _base_model_note(run: RunFolder) -> str:
    if run.kind == "full":
        return "The files hold the whole model: no other is needed."
    if run.hub_base:
        return ""
    return (
        "The base model was a folder on the machine that trained this, not a model on the Hub, and so the metadata "
        "name none. On another machine put the folder of your copy in the place of what follows `base_model`."
    )


def _results_section(run: RunFolder) -> str:
    columns = {split: _metrics(run, key) for split, key in (("test", "test"), ("validation", "val"))}
    columns = {split: metrics for split, metrics in columns.items() if metrics}
    if not columns:
        return "## Results\n\nThe run left no measured results."
    lines = [f"| {run.family.model_type}, {_data_set(run)[0]} | {' | '.join(columns)} |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for key, name in METRICS.items():
        cells = [_cell(run, split, key) if key in metrics else "" for split, metrics in columns.items()]
        lines += [f"| {name} | {' | '.join(cells)} |"] if any(cells) else []
    parts = ["## Results", "\n".join(lines), _prompts(run)]
    if (run.folder / "samples.png").is_file():
        parts.append("![Test images with prompt, true mask, predicted mask and Dice](samples.png)")
    return "\n\n".join(part for part in parts if part)


def _cell(run: RunFolder, split: str, key: str) -> str:
    name = f"{'val' if split == 'validation' else split}_{key}"
    digits = 2 if key == "hd95" else 4
    deviation = run.results.get(f"{name}_std")
    figure = f"{run.results[name]:.{digits}f}"
    return f"{figure} ± {deviation:.{digits}f}" if _is_figure(deviation) else figure


def _prompts(run: RunFolder) -> str:
    listed, key = run.results.get("test_prompts"), run.results.get("prompt")
    if run.results.get("override_prompt"):
        return f"Every image was evaluated with the prompt {_code(run.results['override_prompt'])}."
    if listed:
        shown = ", ".join(map(_code, listed[:10]))
        return f"Prompts of the evaluation: {shown}{f' and {len(listed) - 10} more' if len(listed) > 10 else ''}."
    if key and re.fullmatch(r"p\d", key):
        return f"Every image was evaluated with its annotation's prompt {_code(key)}."
    if key == "random":
        return "Every image was evaluated with the last of its prompts, the one with the highest number."
    return ""


def _example_prompt(run: RunFolder) -> str:
    listed = run.results.get("test_prompts") or ["what to segment"]
    return run.results.get("override_prompt") or listed[0]


def _hyper_parameter_section(run: RunFolder) -> str:
    rows = [
        f"| {name} | {_code(value)} |"
        for name, value in run.results.items()
        if isinstance(value, (bool, int, float, str))
        and not _NO_HYPER_PARAMETER.fullmatch(name)
        and not (isinstance(value, str) and ("/" in value or os.sep in value))
    ]
    if not rows:
        return ""
    steps = run.results.get("train_steps")
    ran = f"\n\nTraining ran for {steps:,} steps." if _is_figure(steps) else ""
    curves = (
        "\n\n![Loss, validation figures and learning rate over the steps](curves.png)"
        if (run.folder / "curves.png").is_file()
        else ""
    )
    return "## Hyper-parameters\n\n| name | value |\n| --- | --- |\n" + "\n".join(rows) + ran + curves


def _limits(run: RunFolder) -> str:
    measured = _metrics(run, "test")
    data = f"measured on the test images of {_data_set(run)[0]} alone" if measured else "not measured"
    return (
        "## Limits\n\n"
        "- For research. This is not a medical device: no mask of it may guide a diagnosis or a treatment.\n"
        f"- Its quality is {data}. Other devices, image qualities and prompts may give worse masks.\n"
        "- It may well mark something for a prompt that names nothing in the image.\n"
        "- No licence was recorded with the training run. That of the base model holds for the base model's weights."
    )


def _code(value: Any) -> str:
    """As code in Markdown, safe inside a table."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
