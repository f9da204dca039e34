"""benchmarks/speed.py on tiny models: figures that agree with each other and with finetune.py's methods; bad flags."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from builders import failure_of, run_example
from models import FAMILIES
from PIL import Image
from segmenters import write_sam3_model

from peft_vlsm.segmentation.models.finetuned import load_base
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss
from peft_vlsm.segmentation.training.methods import (
    METHODS,
    Method,
    freeze_what_the_loss_misses,
    make_trainable,
    resolve,
)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = {"results.json", "results.md", "speed.png"}
FEW = ["--steps", "1", "--warmup_steps", "1", "--repeats", "1", "--prompt_tokens", "8", "--prompts", "3"]
FEW += ["--per_device_train_batch_size", "2"]
SECONDS = ("seconds", "processor_seconds")
SIZES = ("peak_memory_bytes", "trainable_parameters", "saved_bytes")
SIDES = {"clipseg": 32, "sam3": 64}
# All of them if no flag names any.
METHODS_OF = {"clipseg": METHODS, "sam3": ("dense", "shallow", "full")}
VARIANTS = {
    "clipseg": dict.fromkeys(("dense", "shallow", "lora", "ia3"), "VL"),
    "sam3": {"dense": "VL", "shallow": "V"},
}


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("speed")


def parts(*names):
    return [importlib.import_module(f"step_cost.{name}") for name in names]


@pytest.fixture(scope="module")
def clipseg(base):
    return base


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    """Skips what asks for it where transformers has no SAM3."""
    return write_sam3_model(tmp_path_factory.mktemp("models") / "sam3")


@pytest.fixture(scope="module", params=["clipseg", "sam3"])
def run(request, speed, tmp_path_factory):
    """A run over an earlier one's results: the family, the output folder and results.json."""
    model = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp(request.param) / "out"
    out.mkdir()
    (out / "results.md").write_text("earlier results")
    flags = ["--methods", *METHODS_OF["sam3"]] if request.param == "sam3" else ["--gradient_checkpointing", "dense"]
    paths = ["--model_name_or_path", model, "--output_dir", out, "--overwrite_output_dir"]
    run_example(speed, *paths, *FEW, *flags)
    return request.param, out, json.loads((out / "results.json").read_text())


def finetunes_parameters(model_path, family, name, variant):
    model, _ = load_base(model_path)
    ids = torch.tensor([[model.config.text_config.bos_token_id, 5, model.config.text_config.eos_token_id]])
    side = SIDES[family]
    batch = {"pixel_values": torch.randn(1, 3, side, side), "masks": torch.ones(1, side, side)}
    batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = make_trainable(model, resolve(Method(name, variant=variant)))
    freeze_what_the_loss_misses(model, lambda: segmentation_loss(run_segmenter(model, batch), batch["masks"]).sum())
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_every_method_is_measured(run):
    family, out, results = run
    assert {file.name for file in out.iterdir()} == FILES and list(out.parent.iterdir()) == [out]
    trained = [row["method"] for row in results["training"] if not row["gradient_checkpointing"]]
    assert trained == list(METHODS_OF[family])
    checkpointed = [row["method"] for row in results["training"] if row["gradient_checkpointing"]]
    assert checkpointed == (["dense"] if family == "clipseg" else [])
    assert [row["method"] for row in results["prediction"]] == ["frozen", *METHODS_OF[family]]
    variants = {row["method"]: row["variant"] for row in results["training"] if row["variant"] is not None}
    assert variants == VARIANTS[family]
    assert results["machine"]["torch"] == torch.__version__ and results["settings"]["image_size"] == SIDES[family]
    tables = (out / "results.md").read_text()
    assert "earlier results" not in tables and all(f"| {name}" in tables for name in METHODS_OF[family])
    with Image.open(out / "speed.png") as picture:
        assert min(picture.size) > 200 and len(picture.convert("L").getcolors()) > 10


def test_ratios_are_quotients(run):
    family, _, results = run
    of_training = results["training"][METHODS_OF[family].index("full")]
    tables = [
        (results["training"], of_training, SECONDS + SIZES),
        (results["prediction"], results["prediction"][0], SECONDS),
    ]
    tables.append(([results["reuse"]], results["every_pair"], SECONDS))
    for rows, reference, names in tables:
        for row in rows:
            assert all(row[name] > 0 for name in names)
            assert row["ratios"] == {name: row[name] / reference[name] for name in names}
            # Of a single turn.
            assert row["ratio_ranges"] == {name: [row["ratios"][name]] * 2 for name in SECONDS}
    assert results["reuse"]["prompts"] == 3
    for row in results["training"]:
        assert row["peak_memory_bytes"] > results["libraries_bytes"] or torch.cuda.is_available()


def test_sizes_are_those_of_finetune(run):
    family, _, results = run
    for row in results["training"]:
        expected = finetunes_parameters(
            results["settings"]["model_name_or_path"], family, row["method"], row["variant"]
        )
        assert row["trainable_parameters"] == expected
        # Float32 and a header; full saves what it leaves frozen too.
        floats = results["total_parameters"] if row["method"] == "full" else expected
        assert 4 * floats <= row["saved_bytes"] < 4 * floats + 60_000


def test_medians_over_turns(speed):
    measure, report, settings = (
        importlib.import_module(f"step_cost.{part}") for part in ("measure", "report", "settings")
    )

    def turns(*seconds):
        sizes = {"peak_memory_bytes": 8, "trainable_parameters": 4, "saved_bytes": 16}
        passes = [measure.Timing([each, 9 * each, each], [2 * each, 2 * each, 0]) for each in seconds]
        return [measure.Measurement(training=t, prediction=t, every_pair=t, reuse=t, **sizes) for t in passes]

    found = {"frozen": turns(1, 1, 1), "lora": turns(1, 2, 9), "full": turns(2, 4, 6)}
    asked = settings.Arguments(output_dir="none")
    results = report.summarise({measure.Case(name): each for name, each in found.items()}, asked)
    lora, predicted = results["training"][0], results["prediction"][2]
    assert lora["turns"] == {"seconds": [1, 2, 9], "processor_seconds": [2, 4, 18]}
    assert (lora["seconds"], lora["processor_seconds"], lora["ratios"]["seconds"]) == (2, 4, 0.5)
    assert lora["ratio_ranges"]["seconds"] == [0.5, 1.5]
    assert predicted["method"] == "full" and predicted["ratios"]["seconds"] == 4
    assert predicted["ratio_ranges"]["seconds"] == [2, 6]


@pytest.mark.parametrize("before, turns", [(5, 2), (2, 1), (1, None)])
def test_ctrl_c_leaves_whole_turns(speed, monkeypatch, before, turns):
    measure, settings = parts("measure", "settings")
    args = settings.Arguments(output_dir="none", repeats=5)
    left = iter(range(before))

    def measured(case, args, went_on):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return case.method

    monkeypatch.setattr(speed, "measure_in_process", measured)
    cases = [measure.Case("frozen"), measure.Case("full")]
    if turns is None:
        with pytest.raises(KeyboardInterrupt):
            speed.measure_in_turns(cases, args)
    else:
        assert speed.measure_in_turns(cases, args) == {case: [case.method] * turns for case in cases}
        assert args.repeats == turns


@pytest.mark.parametrize("name, side, millions", [("clipseg", 352, 151), ("sam3", 1008, 840)])
def test_published_sizes(speed, name, side, millions):
    models, settings = parts("models", "settings")
    if name == "sam3":
        pytest.importorskip("transformers.models.sam3")
    family, config, built = models.read_config(settings.Arguments(output_dir="none", model=name))
    with torch.device("meta"):
        model = models.build_model(family, config, 0)
    assert built == side
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(millions * 1e6, rel=0.005)


BAD = {
    "unknown method": (["--methods", "full", "prefix"], "--methods prefix is not a method"),
    "no full": (["--methods", "dense", "lora"], "--methods dense lora lacks full"),
    "no steps": (["--steps", "0"], "--steps 0 must be above 0"),
    "no turns": (["--repeats", "0"], "--repeats 0 must be above 0"),
    "not a number": (["--prompts", "many"], "argument --prompts: invalid int value: 'many'"),
    "unknown flag": (["--batch", "4"], "unknown arguments: --batch 4"),
    "short prompts": (["--prompt_tokens", "2"], "--prompt_tokens 2 must be above 2"),
    "long prompts": (["--prompt_tokens", "25"], "--prompt_tokens 25 must not be above 24"),
    "image size": (["--image_size", "30"], "--image_size 30 must be a multiple of the model's patch size 8"),
    "two models": (["--model", "sam3"], "--model sam3 does nothing with --model_name_or_path"),
    "no such model": (
        ["--model_name_or_path", "/no/such/model"],
        "--model_name_or_path /no/such/model cannot be read",
    ),
    "checkpointing": (
        ["--methods", "full", "--gradient_checkpointing", "lora"],
        "--gradient_checkpointing ['lora'] names lora, which is not in --methods",
    ),
    "checkpointing of SAM3": (
        ["--model_name_or_path", "{sam3}", "--gradient_checkpointing", "full"],
        "--gradient_checkpointing: transformers has none for a Sam3Model",
    ),
    "results are there": ([], "is not empty; name another, or add --overwrite_output_dir"),
    "others' files": (["--output_dir", "{clipseg}", "--overwrite_output_dir"], "which is no result; name another"),
}


@pytest.mark.parametrize("flags, message", BAD.values(), ids=BAD)
def test_bad_flags(capsys, request, speed, clipseg, tmp_path, flags, message):
    out = tmp_path / "out"
    if message.startswith("is not empty"):
        out.mkdir()
        (out / "results.md").write_text("earlier results")
    before = sorted(tmp_path.rglob("*"))
    given = [request.getfixturevalue(flag.strip("{}")) if flag.startswith("{") else flag for flag in flags]
    paths = ["--model_name_or_path", clipseg, "--output_dir", out]
    line = failure_of(capsys, speed, *paths, *FEW, *given)
    assert message in line and sorted(tmp_path.rglob("*")) == before


def test_what_a_process_refuses_leaves_earlier_results(capsys, speed, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.md").write_text("earlier results")
    groupvit = next(family for family in FAMILIES if family.name == "groupvit")
    groupvit.build().config.save_pretrained(tmp_path / "groupvit")
    paths = ["--model_name_or_path", tmp_path / "groupvit", "--output_dir", out, "--overwrite_output_dir"]
    line = failure_of(capsys, speed, *paths, *FEW, "--methods", "decoder", "full")
    assert "a GroupViTModel has no head of its own that could train" in line
    assert [file.read_text() for file in out.iterdir()] == ["earlier results"]
    assert {file.name for file in tmp_path.iterdir()} == {"out", "groupvit"}


def test_a_process_that_dies_is_told(speed, clipseg):
    process, measure, settings = (
        importlib.import_module(f"step_cost.{part}") for part in ("process", "measure", "settings")
    )
    args = settings.Arguments(output_dir="none", model_name_or_path=str(clipseg), prompt_tokens=8)
    with pytest.raises(RuntimeError, match="method='none'.* ended with 1"):
        process.measure_in_process(measure.Case("none"), args, lambda: None)
