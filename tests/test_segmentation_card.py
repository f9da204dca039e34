"""The card of a run says what its files say, its lines run, and it replaces nothing that someone wrote."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import yaml
from builders import write_base_model
from huggingface_hub import ModelCard
from packaging.version import Version
from PIL import Image
from run_folders import METHODS, write_run
from segmenters import write_groupvit_model, write_sam3_model

from peft_vlsm.architectures import mask_logits_of
from peft_vlsm.segmentation.data.transforms import image_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import load_finetuned
from peft_vlsm.segmentation.models.segmenter import family_of
from peft_vlsm.segmentation.prediction.predictor import resize_logits
from peft_vlsm.segmentation.publishing.model_card import write_model_card
from peft_vlsm.segmentation.training.methods import KEYWORDS

HUB_BASE = "CIDAS/clipseg-rd64-refined"
PROMPT = "a red disc"


@pytest.fixture
def run(base, tmp_path):
    def write(method="shallow", **results):
        return write_run(tmp_path / method, base, method, **results)

    return write


@pytest.fixture
def image(tmp_path, monkeypatch):
    """The image.png of the snippet's working folder, wider than high."""
    monkeypatch.chdir(tmp_path)
    noise = torch.randint(0, 256, (36, 44, 3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    image.save("image.png")
    return image


def card_of(folder, repo_id="me/polyps"):
    assert write_model_card(folder, repo_id)
    return ModelCard.load(folder / "README.md")


def snippet_of(folder, name="me/polyps"):
    (code,) = re.findall(r"```python\n(.*?)```", card_of(folder).text, re.DOTALL)
    return code.replace(json.dumps(name), json.dumps(str(folder)))


def run_snippet(folder):
    names: dict = {}
    exec(compile(snippet_of(folder), "README.md", "exec"), names)
    return names


def mask_of(folder, image, prompt=PROMPT):
    """The mask as this package's own modules give it."""
    model, processor = load_finetuned(folder)
    pixels = image_to_tensor(processor, image)[None]
    family = family_of(model)
    tokens, flags = prompts_to_tensors(processor, [prompt]), dict.fromkeys(family.flags, True)
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens, **flags)
    return resize_logits(mask_logits_of(family, output, 1)[0], image.size) > 0


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("method", "library", "relation", "tags"),
    [
        ("dense", "peft", "adapter", ["clipseg", "dense"]),
        ("shallow", "peft", "adapter", ["clipseg", "shallow"]),
        ("lora", "peft", "adapter", ["clipseg", "lora"]),
        ("ia3", "peft", "adapter", ["clipseg", "ia3"]),
        ("decoder", "peft_vlsm", "finetune", ["clipseg"]),
        ("full", "transformers", "finetune", ["clipseg"]),
    ],
)
def test_metadata(run, method, library, relation, tags):
    text = (card_of(run(method)).content).split("---")[1]
    task = {"type": "image-segmentation", "name": "Text-prompted image segmentation"}
    metrics = [
        {"type": "dice", "value": 0.75, "name": "Dice"},
        {"type": "iou", "value": 0.6125, "name": "IoU"},
    ]
    data = {"name": "polyps", "type": "custom", "split": "test"}
    assert yaml.safe_load(text) == {
        "library_name": library,
        "base_model_relation": relation,
        "pipeline_tag": "image-segmentation",
        "tags": ["peft_vlsm", "vision-language", *tags],
        "model-index": [{"name": "polyps", "results": [{"task": task, "dataset": data, "metrics": metrics}]}],
    }


@pytest.mark.parametrize("method", ["lora", "decoder", "full"])
def test_a_base_model_on_the_hub_is_named_and_a_folder_is_not(run, base, method):
    folder = run(method)
    card = card_of(folder)
    assert card.data.base_model is None and str(base) not in card.content
    assert ("The base model was a folder" in card.text) == (method != "full")
    for name in ("adapter_config.json", "decoder_config.json"):
        if (folder / name).exists():
            edit(folder / name, base_model_name_or_path=HUB_BASE)
    edit(folder / "all_results.json", model_name_or_path=HUB_BASE)
    card = card_of(folder)
    assert card.data.base_model == HUB_BASE and f"](https://huggingface.co/{HUB_BASE})" in card.text
    assert "The base model was a folder" not in card.text


@pytest.mark.parametrize("method", METHODS)
def test_the_snippet_gives_the_mask_of_the_model(run, image, method):
    folder = run(method, override_prompt=PROMPT)
    assert snippet_of(folder).startswith("import peft_vlsm")
    expected = mask_of(folder, image)
    assert expected.any() and not expected.all()
    assert torch.equal(run_snippet(folder)["mask"], expected)
    with Image.open("mask.png") as mask:
        assert mask.size == image.size


def test_the_snippet_runs_in_a_fresh_process_and_needs_its_first_line(run, image):
    code = snippet_of(run("dense"))
    without = code.partition("\n")[2]
    script = (
        f"try:\n    exec({without!r})\nexcept KeyError as error:\n    print(error)\nexec({code!r})\nprint(mask.shape)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.stdout == "'VLSM_DENSE_ADAPTER'\ntorch.Size([36, 44])\n", done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_the_snippet_builds_sam3_for_the_image_size_of_training(image, tmp_path, method):
    if method == "dense" and Version(peft.__version__) < KEYWORDS:
        pytest.skip("with its mask_decoder, which peft cannot run before 0.20")
    base = write_sam3_model(tmp_path / "base")
    folder = write_run(tmp_path / method, base, method, side=96, override_prompt=PROMPT)
    assert "sam3" in card_of(folder).data.tags
    expected = mask_of(folder, image)
    assert expected.any() and not expected.all()
    assert torch.equal(run_snippet(folder)["mask"], expected)


@pytest.mark.parametrize("method", ["dense", "full"])
def test_the_snippet_asks_groupvit_for_masks(image, tmp_path, method):
    base = write_groupvit_model(tmp_path / "base")
    folder = write_run(tmp_path / method, base, method, override_prompt=PROMPT)
    assert torch.equal(run_snippet(folder)["mask"], mask_of(folder, image))


def test_the_snippet_cuts_a_prompt_that_is_longer_than_the_text_encoder(run, image):
    folder = run(override_prompt=f"{PROMPT}, {PROMPT}, {PROMPT}")
    assert torch.equal(run_snippet(folder)["mask"], mask_of(folder, image, f"{PROMPT}, {PROMPT}, {PROMPT}"))


def test_what_a_run_measured_and_how_it_trained_is_shown(run):
    extra = {"test_hd95": 12.3456, "test_dice_std": 0.1, "val_recall": 0.5, "mixed_precision": "fp16"}
    text = card_of(run("dense", **extra)).text
    assert "variant VLC (vision encoder, text encoder, conditional embedding); width 4; width 6 at the cond" in text
    assert "trained along: decoder" in text and "1,234 of 12,340 parameters were trained (10.00%)" in text
    table = "| --- | ---: | ---: |\n| Dice | 0.7500 ± 0.1000 | 0.8000 |\n| IoU | 0.6125 | 0.7000 |\n"
    assert (
        f"| clipseg, polyps | test | validation |\n{table}| HD95 (pixels) | 12.35 |  |\n| Recall |  | 0.5000 |" in text
    )
    assert "](samples.png)" in text and "](curves.png)" in text and "Training ran for 1,200 steps." in text
    assert "| learning_rate | `0.001` |" in text and "| mixed_precision | `fp16` |" in text
    assert "not a medical device" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, True, "0.5"])
def test_what_is_no_figure_is_not_published(run, value):
    card = card_of(run(test_hd95=value))
    assert "HD95" not in card.content and [result.metric_type for result in card.data.eval_results] == ["dice", "iou"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", "out"),
        ("hub_token", "hf_secret"),
        ("hub_model_id", "polyps"),
        ("train_data_dir", "somewhere"),
        ("resume_from_checkpoint", "latest"),
        ("checkpoints_total_limit", 3),
        ("tracker_file", "/home/somebody/log"),
        ("max_train_steps", None),
    ],
)
def test_paths_and_secrets_are_no_hyper_parameters(run, name, value):
    content = card_of(run(**{name: value})).content
    assert name not in content and "/home/" not in content and "hf_secret" not in content


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ({"override_prompt": "red `disc` | x"}, "Every image was evaluated with the prompt `red 'disc' \\| x`."),
        ({"prompt": "p6"}, "Every image was evaluated with its annotation's prompt `p6`."),
        (
            {"prompt": "random"},
            "Every image was evaluated with the last of its prompts, the one with the highest number.",
        ),
        ({"prompt": "random", "test_prompts": ["a", "b"]}, "Prompts of the evaluation: `a`, `b`."),
        ({"test_prompts": list("abcdefghijkl")}, "`j` and 2 more."),
    ],
    ids=["override", "key", "random", "list", "long list"],
)
def test_prompts_are_named_where_they_are_known(run, results, sentence):
    assert sentence in card_of(run(**results)).text


def test_prompts_are_not_guessed(run):
    text = card_of(run()).text
    assert "was evaluated with" not in text and "Prompts of" not in text


def test_a_data_set_on_the_hub_is_linked(run):
    card = card_of(run(dataset_name="somebody/polyps"))
    assert card.data.datasets == "somebody/polyps"
    assert {(result.dataset_type, result.dataset_name) for result in card.data.eval_results} == {
        ("somebody/polyps", "somebody/polyps")
    }


@pytest.mark.parametrize(
    ("places", "name"),
    [
        ({"data_dir": None, "train_data_dir": "/data/polyps of Oslo"}, "polyps of Oslo"),
        ({"dataset_name": "/data/kvasir"}, "kvasir"),
        ({"dataset_name": "somebody/kvasir"}, "kvasir"),
        ({"data_dir": None, "train_annotations": "/data/a.json"}, "unnamed data"),
    ],
    ids=["a folder a split", "a folder by its name", "a folder as on the Hub", "files"],
)
def test_data_that_are_files_here_are_named_and_not_linked(run, tmp_path, monkeypatch, places, name):
    (tmp_path / "somebody" / "kvasir").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = card_of(run(**places))
    (data,) = {(result.dataset_type, result.dataset_name) for result in card.data.eval_results}
    assert data == ("custom", name) and card.data.datasets is None


def test_a_run_without_results_or_picture_says_so(run):
    folder = run()
    (folder / "all_results.json").unlink()
    (folder / "samples.png").unlink()
    card = card_of(folder)
    assert card.data.eval_results is None and "model-index" not in card.content
    assert "left no measured results" in card.text and "Its quality is not measured." in card.text
    assert "samples.png" not in card.text and "Hyper-parameters" not in card.text


@pytest.mark.parametrize("method", ["dense", "lora", "ia3"])
def test_pefts_template_and_our_own_card_are_replaced(run, method):
    folder = run(method)
    assert "[More Information Needed]" in (folder / "README.md").read_text()
    assert write_model_card(folder)
    first = (folder / "README.md").read_text()
    assert first.startswith("---\nlibrary_name: peft\n") and f"# {method}\n" in first
    assert write_model_card(folder, "me/polyps")
    assert "# polyps\n" in (folder / "README.md").read_text()
    assert write_model_card(folder) and (folder / "README.md").read_text() == first


def add_licence(text):
    return text.replace("---\n", "---\nlicense: mit\n", 1)


@pytest.mark.parametrize(
    ("ours", "change"),
    [
        (True, lambda text: text.replace("For research.", "For research and teaching.")),
        (True, lambda text: text + "\nMore.\n"),
        (True, add_licence),
        (True, lambda text: re.sub("<!--.*-->", "", text)),
        (False, add_licence),
        (False, lambda text: text.replace("[More Information Needed]", "me", 1)),
        (False, lambda text: text.replace("- transformers", "- transformers\n- polyps")),
        (False, lambda text: "# My adapter\n"),
        (False, lambda text: "---\ntags: [\n---\n"),
        (False, lambda text: "---\n- a list\n---\n"),
    ],
    ids=["words", "end", "licence", "mark", "peft-licence", "peft-words", "peft-tag", "own", "broken", "list"],
)
def test_an_edited_card_is_kept(run, ours, change):
    folder = run()
    if ours:
        write_model_card(folder)
    file = folder / "README.md"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    edited = file.read_bytes()
    assert write_model_card(folder, "me/polyps") is False
    assert file.read_bytes() == edited


def test_a_card_that_is_no_text_is_kept_and_an_empty_one_is_not(run):
    folder = run()
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    assert write_model_card(folder) is False
    (folder / "README.md").write_bytes(b"\n")
    assert write_model_card(folder) is True


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", None, "holds no fine-tuned model: none of adapter_config.json, decoder_config.json, "),
        ("adapter_config.json", b"{", "adapter_config.json cannot be read"),
        ("adapter_config.json", b"[]", "adapter_config.json holds no JSON object"),
        ("adapter_config.json", b"{}", "adapter_config.json has the peft_type None; allowed: VLSM_DENSE_ADAPTER, "),
        (
            "adapter_config.json",
            b'{"peft_type": "LORA"}',
            "is of None, which is none of the models with text-prompted",
        ),
        ("adapter_model.safetensors", None, "adapter_model.safetensors is no safetensors file"),
        ("adapter_model.safetensors", b"pickle", "adapter_model.safetensors is no safetensors file"),
        ("all_results.json", b"\xff", "all_results.json cannot be read"),
    ],
)
def test_a_broken_folder_is_named_and_its_card_left_alone(run, file, content, message):
    folder = run()
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    before = (folder / "README.md").read_bytes()
    with pytest.raises(InputError) as failure:
        write_model_card(folder)
    assert message in str(failure.value) and str(folder) in str(failure.value)
    assert (folder / "README.md").read_bytes() == before


def test_a_card_that_cannot_be_written_is_named(run):
    folder = run("decoder")
    (folder / "README.md").mkdir()
    with pytest.raises(InputError, match="README.md cannot be written"):
        write_model_card(folder)


@pytest.mark.parametrize("place, step", [(Path, "write_text"), (os, "replace")], ids=["write", "rename"])
def test_a_card_whose_writing_fails_leaves_the_former_one(run, monkeypatch, place, step):
    folder = run()
    before = (folder / "README.md").read_bytes()

    def full_disk(file, *args, **settings):
        Path(file).write_bytes(b"# cut o")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, step, full_disk)
    with pytest.raises(InputError, match="README.md cannot be written: No space left on device"):
        write_model_card(folder)
    assert (folder / "README.md").read_bytes() == before


def test_an_untrained_base_model_without_results_is_not_named(tmp_path):
    card = card_of(write_base_model(tmp_path / "base"))
    assert card.data.base_model is None and "began from a CLIPSegForImageSegmentation." in card.text
