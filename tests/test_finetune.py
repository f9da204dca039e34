"""examples/finetune.py as users run it, on a tiny random CLIPSeg: every method, what it leaves, and bad input."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from builders import (
    PROCESSOR_FILES,
    forget_accelerator,
    load_example,
    read_rows,
    remove_processor,
    write_dataset,
    write_rows,
)
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers.models.clipseg.modeling_clipseg import CLIPSegMLP

from peft_vlsm.architectures import unreached_parameters
from peft_vlsm.segmentation.data.annotations import read_annotations
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.models.finetuned import load_base, load_finetuned
from peft_vlsm.segmentation.models.segmenter import run_segmenter

SCRIPT = Path(__file__).parents[1] / "examples" / "finetune.py"
RESULT_FILES = {"all_results.json", "samples.png", "curves.png", "log.jsonl", "README.md"}
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
DECODER_FILES = {"config.json", "decoder_config.json", "decoder.safetensors"}
FULL_FILES = {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def finetune():
    return load_example("finetune")


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "discs")


@pytest.fixture
def run(finetune, base, shared_data, tmp_path, monkeypatch):
    """Runs the script in this process with flags; returns its results."""

    def run(*flags, data=shared_data, out=tmp_path / "out", model=base):
        forget_accelerator()
        for handler in logging.getLogger("transformers").handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
        paths = ["--data_dir", data, "--output_dir", out, "--model_name_or_path", model]
        few = ["--per_device_train_batch_size", "4", "--max_train_steps", "3"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, paths), *few, *map(str, flags)])
        finetune.main()
        return json.loads((out / "all_results.json").read_text())

    return run


METHODS = {
    "dense": (["--method", "dense"], ADAPTER_FILES, "VL", 64),
    "dense VLC": (["--method", "dense", "--variant", "VLC", "--adapter_dim", 4], ADAPTER_FILES, "VLC", 4),
    "dense and decoder": (["--method", "dense", "--train_decoder"], ADAPTER_FILES, "VL", 64),
    "shallow": (["--method", "shallow"], ADAPTER_FILES, "VL", 512),
    "shallow and decoder": (["--method", "shallow", "--train_decoder"], ADAPTER_FILES, "VL", 512),
    "lora": (["--method", "lora"], ADAPTER_FILES, "VL", 16),
    "ia3": (["--method", "ia3"], ADAPTER_FILES, "VL", None),
    "lora V and decoder": (
        ["--method", "lora", "--variant", "V", "--adapter_dim", 2, "--train_decoder"],
        ADAPTER_FILES,
        "V",
        2,
    ),
    "decoder": (["--method", "decoder"], DECODER_FILES, None, None),
    "full": (["--method", "full"], FULL_FILES, None, None),
}


@pytest.mark.parametrize("flags, files, variant, adapter_dim", METHODS.values(), ids=METHODS)
def test_a_method(run, finetune, base, shared_data, tmp_path, flags, files, variant, adapter_dim):
    out = tmp_path / "out"
    results = run(*flags)

    written = {file.name for file in out.iterdir()}
    assert written == files | PROCESSOR_FILES | RESULT_FILES | {"step_2", "step_3"}
    assert results["method"] == flags[1] and results["seed"] == 42 and results["image_size"] == 32
    assert (results["variant"], results["adapter_dim"]) == (variant, adapter_dim)
    assert results["learning_rate"] == (3e-4 if flags[1] == "shallow" else 1e-3)
    assert results["train_steps"] == 3 and results["train_seconds"] > 0
    assert 0 < results["test_iou"] <= results["test_dice"] <= 1 and 0 < results["val_dice"] <= 1
    with Image.open(out / "samples.png") as samples:
        assert samples.width > samples.height > 500

    weights = load_file(next(out.glob("*.safetensors")))
    base_model, _ = load_base(str(base))
    if files is FULL_FILES:
        unreached = unreached_parameters(base_model)
        before = dict(base_model.named_parameters())
        moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
        assert moved == before.keys() - unreached
        assert results["trainable_parameters"] == sum(before[name].numel() for name in moved)
    else:
        assert results["trainable_parameters"] == sum(weight.numel() for weight in weights.values())
        limit = 4 * results["trainable_parameters"] + 256 * len(weights) + 4096
        assert next(out.glob("*.safetensors")).stat().st_size <= limit
    assert results["total_parameters"] >= base_model.num_parameters()

    model, processor = load_finetuned(out)
    assert isinstance(model, PeftModel) == (files is ADAPTER_FILES)
    dataset = SegmentationDataset(read_annotations(shared_data, "test"), processor)
    loader = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
    again = finetune.evaluate(model, loader, Accelerator())
    assert (again["dice"], again["iou"]) == pytest.approx((results["test_dice"], results["test_iou"]))
    batch = next(iter(loader))
    with torch.no_grad():
        change = run_segmenter(model, batch).logits - run_segmenter(base_model, batch).logits
    assert change.abs().max() > 1e-6, "training changed nothing"


@pytest.mark.parametrize("method", ["dense", "shallow"])
def test_how_adapters_start(run, tmp_path, method):
    """The rate is too small for a step to hide where the adapter came from."""
    flags = ["--method", method, "--learning_rate", "1e-12", "--weight_decay", 0, "--adapter_dim", 4]
    for value, expected in (("paper", False), ("True", True)):
        out = tmp_path / value
        assert run(*flags, "--init_weights", value, out=out)["init_weights"] == value
        weights = load_file(out / "adapter_model.safetensors")
        second = [weight.abs().max() for name, weight in weights.items() if name.endswith("fc2.weight")]
        assert second and all((largest < 1e-6) == expected for largest in second)


def test_training_learns(run):
    results = run(
        "--method", "full", "--learning_rate", "2e-3", "--max_train_steps", 30, "--per_device_train_batch_size", 6
    )
    assert results["val_dice"] > 0.35


def test_same_seed_same_bytes(run, tmp_path):
    def weights(name, *flags):
        run("--adapter_dim", 4, *flags, out=tmp_path / name)
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert weights("first") == weights("second") != weights("third", "--seed", 43)


def _script_evaluations(monkeypatch, finetune, dices, seen):
    """Replaces evaluation by given Dice figures and notes the weights that it was asked about."""
    figures = iter(dices)

    def evaluate(model, loader, accelerator):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return {"dice": next(figures), "iou": 0.1, "loss": 1.0}

    monkeypatch.setattr(finetune, "evaluate", evaluate)


def test_the_best_weights_by_validation_dice_are_kept_and_tested(run, finetune, monkeypatch, tmp_path):
    seen = []
    _script_evaluations(monkeypatch, finetune, [0.3, 0.6, 0.5, 0.4, 0.77], seen)
    results = run("--method", "decoder", "--max_train_steps", 8)
    assert results["val_dice"] == 0.6 and results["test_dice"] == 0.77 and results["train_steps"] == 8
    best, last, tested = seen[1], seen[3], seen[4]
    saved = load_file(tmp_path / "out" / "decoder.safetensors")
    for name in best:
        assert torch.equal(saved[name], best[name]) and torch.equal(tested[name], best[name])
        assert not torch.equal(last[name], best[name])


def test_early_stopping_and_learning_rate_plateau(run, finetune, monkeypatch):
    seen, optimizers = [], []

    class Recorded(torch.optim.AdamW):
        def __init__(self, parameters, **settings):
            parameters = list(parameters)
            optimizers.append((self, parameters))
            super().__init__(parameters, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    # The first gain is above 1e-4, the second is not and starts no new count; 20 epochs after the first comes the end.
    _script_evaluations(monkeypatch, finetune, [0.3, 0.4, 0.40005, *[0.1] * 30], seen)
    results = run("--method", "decoder", "--max_train_steps", 60)
    assert results["train_steps"] == 2 * (2 + 20) and len(seen) == 2 + 20 + 1
    assert results["val_dice"] == 0.40005
    optimizer, parameters = optimizers[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.3**3), "22 epochs hold three plateaus of 5"
    assert optimizer.param_groups[0]["weight_decay"] == 1e-3
    assert parameters and all(parameter.requires_grad for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) == results["trainable_parameters"]


SCHEDULES = {
    "constant_with_warmup": [0.5, 1, 1, 1, 1, 1],
    "linear": [0.5, 1, 0.75, 0.5, 0.25, 0],
    "cosine": [0.5, 1, 0.853553, 0.5, 0.146447, 0],
    "cosine_with_restarts": [0.5, 1, 0.853553, 0.5, 0.146447, 0],
    "polynomial": [0.5, 1, 0.75, 0.5, 0.25, 0],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_that_follow_the_steps(run, monkeypatch, name):
    """The rates that the optimizer's steps leave, of which the last serves no step."""
    rates = []

    class Recorded(torch.optim.AdamW):
        def zero_grad(self, set_to_none=True):
            rates.append(self.param_groups[0]["lr"])
            super().zero_grad(set_to_none)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    flags = ["--lr_scheduler_type", name, "--num_warmup_steps", 2, "--learning_rate", 1, "--max_train_steps", 6]
    results = run("--method", "decoder", *flags)
    assert results["lr_scheduler_type"] == name
    assert rates == pytest.approx([0, *SCHEDULES[name][:-1]], abs=1e-6)


@pytest.mark.parametrize("method", ["dense", "lora", "full"])
def test_gradient_checkpointing_computes_the_same_twice(run, tmp_path, monkeypatch, method):
    calls = []
    forward = CLIPSegMLP.forward
    monkeypatch.setattr(CLIPSegMLP, "forward", lambda *args, **named: (calls.append(1), forward(*args, **named))[1])
    flags = ("--method", method, "--max_train_steps", 2)
    run(*flags, out=tmp_path / "kept")
    kept = len(calls)
    run(*flags, "--gradient_checkpointing", out=tmp_path / "twice")
    assert len(calls) - kept > kept
    weights = [load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("kept", "twice")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "flags, steps",
    [
        (["--max_train_steps", 5], 5),
        (["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--max_train_steps", 4], 4),
    ],
)
def test_steps(run, flags, steps):
    assert run("--method", "decoder", *flags)["train_steps"] == steps


def test_accumulation_ends_with_the_epoch(run, finetune, monkeypatch):
    """Six rows are three batches of two, and thus two steps an epoch."""
    seen = []
    _script_evaluations(monkeypatch, finetune, [0.1] * 9, seen)
    run(
        "--method",
        "decoder",
        "--per_device_train_batch_size",
        2,
        "--gradient_accumulation_steps",
        2,
        "--max_train_steps",
        6,
    )
    assert len(seen) == 3 + 1


def test_gradients_are_clipped(run, monkeypatch, tmp_path):
    """Before every step they have at most the norm that is allowed: the paper's 0.5, or what is given."""
    norms = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    for name, flags, allowed in (("a", (), 0.5), ("b", ("--max_grad_norm", 0.01), 0.01)):
        run("--method", "full", *flags, out=tmp_path / name)
        assert len(norms) == 3 and max(norms) == pytest.approx(allowed, rel=1e-3)
        norms.clear()


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_one_file_of_settings(finetune, base, shared_data, tmp_path, suffix):
    settings = {
        "data_dir": str(shared_data),
        "output_dir": str(tmp_path / "out"),
        "method": "lora",
        "train_decoder": True,
        "learning_rate": 0.002,
        "image_size": None,
    }
    file = tmp_path / f"settings.{suffix}"
    text = json.dumps(settings) if suffix == "json" else yaml.safe_dump(settings) + "weight_decay: 1e-2\n"
    file.write_text(text)
    args = finetune.parse_arguments(finetune.FinetuneArguments, [str(file)])
    assert args.method == "lora" and args.train_decoder is True and args.learning_rate == 0.002
    assert args.image_size is None and args.weight_decay == (1e-3 if suffix == "json" else 1e-2)


def test_the_papers_settings_are_the_default(finetune, tmp_path):
    args = finetune.parse_arguments(
        finetune.FinetuneArguments, ["--data_dir", "data", "--output_dir", str(tmp_path / "out")]
    )
    assert args.init_weights == "paper" and args.lr_scheduler_type == "reduce_lr_on_plateau"
    assert args.model_name_or_path == "CIDAS/clipseg-rd64-refined" and args.method == "dense"
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-3, 1e-3, 0.5)
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.seed) == (32, 200, 42)
    assert (finetune.PLATEAU_FACTOR, finetune.PLATEAU_PATIENCE) == (0.3, 5)
    assert (args.early_stopping_patience, finetune.STOPPING_MIN_DELTA) == (20, 1e-4)


def test_another_method_replaces_the_results_only_when_told(run, tmp_path, capsys):
    out = tmp_path / "out"
    run("--method", "decoder")
    users = [out / "notes.txt", out / "samples" / "mine.png", out / "step_7" / "plan.txt"]
    for file in users:
        file.parent.mkdir(exist_ok=True)
        file.write_text("the user's own")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stop:
        run("--method", "full")
    assert stop.value.code == 2 and "--overwrite_output_dir" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert run("--method", "full", "--overwrite_output_dir")["method"] == "full"
    written = {file.name for file in out.iterdir()}
    assert written == FULL_FILES | PROCESSOR_FILES | RESULT_FILES | {
        "notes.txt",
        "samples",
        "step_2",
        "step_3",
        "step_7",
    }
    assert all(file.read_text() == "the user's own" for file in users)


def test_a_loss_that_is_not_finite_stops_with_step_and_files(run, base, tmp_path, capsys):
    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["decoder.reduces.0.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit) as stop:
        run("--per_device_train_batch_size", 2, model=broken)
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and line.startswith("error: the loss is nan at step 1")
    assert line.count("images/train_") == 2


def test_a_validation_loss_that_is_not_finite_stops_before_weights_are_kept(run, tmp_path, capsys):
    flags = ("--learning_rate", "1e30", "--max_train_steps", 1, "--per_device_train_batch_size", 6)
    with pytest.raises(SystemExit) as stop:
        run("--method", "decoder", *flags)
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and line.startswith("error: the validation loss is nan after step 1")
    assert line.count("images/train_") == 6 and not list((tmp_path / "out").glob("*.safetensors"))


def _broken_annotations(data):
    (data / "anns" / "val.json").write_text("[{")


def _leaving_path(data):
    rows = read_rows(data, "test")
    rows[0]["img_name"] = "../../secret.png"
    write_rows(data, "test", rows)


def _other_size(data):
    Image.new("L", (9, 9)).save(data / "masks" / "test_1.png")


def _corrupt_image(data):
    (data / "images" / "test_2.png").write_bytes(b"\x89PNG nothing more")


def _missing_mask(data):
    (data / "masks" / "val_0.png").unlink()


def _truncated_image(data):
    _truncate(data / "images" / "train_0.png")


def _truncated_test_image(data):
    _truncate(data / "images" / "test_1.png")


def _truncate(path, count=500):
    path.write_bytes(path.read_bytes()[:-count])


DATA_PROBLEMS = {
    "broken annotations": (_broken_annotations, "anns/val.json is not valid JSON"),
    "no annotations": (lambda data: (data / "anns" / "test.json").unlink(), "anns/test.json does not exist"),
    "no folder": (shutil.rmtree, "--data_dir"),
    "leaving path": (_leaving_path, "test.json, row 0 (counted from 0): img_name '../../secret.png' leaves"),
    "other size": (_other_size, "masks/test_1.png is 9x9 but its image"),
    "corrupt image": (_corrupt_image, "images/test_2.png"),
    "missing mask": (_missing_mask, "'val_0.png' does not exist"),
    "truncated image": (_truncated_image, "images/train_0.png cannot be read"),
    "truncated test image": (_truncated_test_image, "images/test_1.png cannot be read"),
}


@pytest.mark.parametrize("spoil, problem", DATA_PROBLEMS.values(), ids=DATA_PROBLEMS)
def test_bad_data(run, tmp_path, capsys, spoil, problem):
    data = write_dataset(tmp_path / "data")
    spoil(data)
    _assert_one_line(run, tmp_path, capsys, problem, data=data)


def test_damaged_pixels_show_before_anything_is_replaced(run, tmp_path, capsys):
    """A PNG file shows its damage with its header, a JPEG file not."""
    data = write_dataset(tmp_path / "data", suffix=".jpg")
    run(data=data)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    _truncate(data / "images" / "test_1.jpg", 100)
    with pytest.raises(SystemExit):
        run("--overwrite_output_dir", data=data)
    assert "images/test_1.jpg cannot be read" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}


def test_results_name_folders_by_their_whole_path(run, base, monkeypatch):
    """The model card says where the base model is, and is read elsewhere."""
    monkeypatch.chdir(base.parent)
    results = run("--method", "full", model=base.name)
    assert results["model_name_or_path"] == str(base)
    assert results["test_prompts"] and all(isinstance(prompt, str) for prompt in results["test_prompts"])


def test_results_tell_the_prompts_of_the_test(run, finetune, shared_data, tmp_path, monkeypatch):
    data = shutil.copytree(shared_data, tmp_path / "data")
    rows = read_rows(data, "test")
    for row, text in zip(rows, ("a", "b", "c"), strict=True):
        row["prompts"]["p3"] = text
    write_rows(data, "test", rows)
    monkeypatch.setattr(finetune, "TOLD_PROMPTS", 2)

    def told(*flags):
        few = ("--max_train_steps", 1, "--adapter_dim", 2, "--checkpointing_steps", "no", "--overwrite_output_dir")
        return run(*few, *flags, data=data).get("test_prompts")

    assert told() == ["a", "b"] and told("--prompt", "p1") == ["disc"]
    assert told("--override_prompt", "a disc") is None


FLAG_PROBLEMS = {
    "method": (["--method", "adapter"], "--method"),
    "variant": (["--variant", "VX"], "variant is 'VX'"),
    "repeated variant": (["--method", "shallow", "--variant", "VV"], "variant is 'VV'"),
    "lora variant": (
        ["--method", "lora", "--variant", "VLC"],
        "variant is 'VLC'; allowed for peft's own methods: V, L or VL",
    ),
    "empty lora variant": (["--method", "lora", "--variant", "X"], "variant is 'X'"),
    "decoder variant": (["--method", "decoder", "--variant", "V"], "--variant V does nothing with --method decoder"),
    "full adapter_dim": (["--method", "full", "--adapter_dim", 3], "--adapter_dim 3 does nothing with --method full"),
    "ia3 adapter_dim": (["--method", "ia3", "--adapter_dim", 3], "--adapter_dim 3 does nothing with --method ia3"),
    "full init_weights": (["--method", "full", "--init_weights", "paper"], "--init_weights paper does nothing"),
    "lora init_weights": (["--method", "lora", "--init_weights", "True"], "--init_weights True does nothing"),
    "init_weights": (["--init_weights", "random"], "--init_weights"),
    "full train_decoder": (["--method", "full", "--train_decoder"], "--train_decoder"),
    "adapter_dim": (["--adapter_dim", 0], "--adapter_dim 0 must be above 0"),
    "image_size": (["--image_size", 30], "--image_size 30 must be a multiple of the model's patch size 8"),
    "image_size word": (["--image_size", "big"], "--image_size"),
    "epochs": (["--num_train_epochs", -1], "--num_train_epochs -1 must be above 0"),
    "steps": (["--max_train_steps", 0], "--max_train_steps 0 must be above 0"),
    "batch": (["--per_device_train_batch_size", 0], "--per_device_train_batch_size 0 must be above 0"),
    "evaluation batch": (["--per_device_eval_batch_size", 0], "--per_device_eval_batch_size 0 must be above 0"),
    "accumulation": (["--gradient_accumulation_steps", 0], "--gradient_accumulation_steps 0 must be above 0"),
    "learning_rate": (["--learning_rate", "-1"], "--learning_rate -1.0 must be above 0"),
    "learning_rate nan": (["--learning_rate", "nan"], "--learning_rate nan must be above 0"),
    "learning_rate inf": (["--learning_rate", "inf"], "--learning_rate inf must be finite"),
    "weight_decay": (["--weight_decay", "-1"], "--weight_decay -1.0 must not be negative"),
    "max_grad_norm": (["--max_grad_norm", 0], "--max_grad_norm 0.0 must be above 0"),
    "scheduler": (["--lr_scheduler_type", "triangle"], "--lr_scheduler_type"),
    "warm-up": (
        ["--lr_scheduler_type", "linear", "--num_warmup_steps", -1],
        "--num_warmup_steps -1 must not be negative",
    ),
    "idle warm-up": (["--num_warmup_steps", 3], "--num_warmup_steps 3 does nothing with"),
    "constant warm-up": (["--lr_scheduler_type", "constant", "--num_warmup_steps", 3], "constant_with_warmup"),
    "checkpoints": (["--checkpointing_steps", "²"], "--checkpointing_steps ² must be epoch, no, or a number"),
    "seed": (["--seed", -1], "--seed -1 must lie between"),
    "large seed": (["--seed", 2**32], "--seed 4294967296 must lie between"),
    "checkpoints kept": (["--checkpoints_total_limit", -1], "--checkpoints_total_limit -1 must not be negative"),
    "trackers": (["--report_to", "wandb"], "--report_to wandb does nothing without --with_tracking"),
    "repository": (["--hub_model_id", "me/discs"], "--hub_model_id me/discs does nothing without --push_to_hub"),
    "private": (["--hub_private_repo"], "--hub_private_repo True does nothing without --push_to_hub"),
    "unknown flag": (["--learning_rates", "1"], "unknown arguments: --learning_rates 1"),
    "no value": (["--seed"], "--seed"),
}


@pytest.mark.parametrize("flags, problem", FLAG_PROBLEMS.values(), ids=FLAG_PROBLEMS)
def test_bad_flags(run, tmp_path, capsys, flags, problem):
    _assert_one_line(run, tmp_path, capsys, problem, *flags)


def _assert_one_line(run, tmp_path, capsys, problem, *flags, **places):
    with pytest.raises(SystemExit) as stop:
        run(*flags, **places)
    assert stop.value.code == 2
    # A truncated image shows when it is read whole; a progress bar stands above the line then.
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "row/s" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and problem in lines[0]
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


MODEL_PROBLEMS = {
    "no model": (lambda model: (model / "config.json").unlink(), "cannot be loaded"),
    "broken weights": (lambda model: (model / "model.safetensors").write_bytes(b"no weights"), "cannot be loaded"),
    "no processor": (remove_processor, "cannot be loaded"),
    "another tokenizer": (
        lambda model: _edit_config(model, vocab_size=300),
        "text encoder 300",
    ),
    "no end of text": (lambda model: _edit_config(model, eos_token_id=7), "looks for the token 7"),
    "another kind": (
        lambda model: (model / "config.json").write_text('{"model_type": "clip"}'),
        "is of the kind clip",
    ),
    "no decoder": (lambda model: _drop_weights(model, "decoder."), "weights, such as decoder."),
    "other sizes": (lambda model: _resize_weight(model, "decoder.film_mul.bias"), "cannot be loaded"),
}


def _edit_config(model, **text_settings):
    config = json.loads((model / "config.json").read_text())
    config["text_config"].update(text_settings)
    (model / "config.json").write_text(json.dumps(config))
    if "vocab_size" in text_settings:
        weights = load_file(model / "model.safetensors")
        name = "clip.text_model.embeddings.token_embedding.weight"
        weights[name] = weights[name][: text_settings["vocab_size"]].clone()
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def _drop_weights(model, prefix):
    weights = load_file(model / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def _resize_weight(model, name):
    weights = load_file(model / "model.safetensors")
    save_file(weights | {name: torch.zeros(3)}, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("spoil, problem", MODEL_PROBLEMS.values(), ids=MODEL_PROBLEMS)
def test_a_bad_model(run, base, tmp_path, capsys, spoil, problem):
    model = shutil.copytree(base, tmp_path / "model")
    spoil(model)
    _assert_one_line(run, tmp_path, capsys, problem, model=model)


def test_output_dirs_that_cannot_serve(run, base, shared_data, tmp_path, capsys):
    (tmp_path / "file").write_text("here already")
    cases = {tmp_path / "file": "is a file", tmp_path / "file" / "below": "--output_dir", base: "not empty"}
    for out, problem in cases.items():
        _assert_one_line(run, tmp_path, capsys, problem, out=out)
    for out, problem in {base: "is --model_name_or_path", shared_data: "is --data_dir"}.items():
        before = sorted(file for file in out.rglob("*"))
        _assert_one_line(run, tmp_path, capsys, problem, "--overwrite_output_dir", out=out)
        assert before == sorted(file for file in out.rglob("*"))


@pytest.mark.parametrize(
    "text, problem",
    [
        ("data_dir: d\noutput_dir: o\nlearning_rates: 1\n", "has unknown keys: learning_rates"),
        ("- data_dir\n", "must hold flags and their values"),
        ("data_dir: [", "is not valid YAML or JSON"),
        ("data_dir: d\n", "required: --output_dir"),
        ("data_dir: d\noutput_dir: o\nseed: many\n", "--seed"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_of_settings(finetune, tmp_path, monkeypatch, capsys, text, problem):
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(file)])
    with pytest.raises(SystemExit) as stop:
        finetune.main()
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and problem in lines[0]


def test_plain_python_with_a_wrong_method(tmp_path):
    command = [sys.executable, str(SCRIPT), "--data_dir", "d", "--output_dir", str(tmp_path / "o"), "--method", "none"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.splitlines() == [ran.stderr.rstrip("\n")] and "--method" in ran.stderr


def test_accelerate_launch(base, shared_data, tmp_path):
    flags = {"data_dir": shared_data, "output_dir": tmp_path / "out", "model_name_or_path": base, "max_train_steps": 2}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "bf16", str(SCRIPT)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_steps"] == 2
    assert load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert "Traceback" not in ran.stderr and "val_dice=" in ran.stderr
