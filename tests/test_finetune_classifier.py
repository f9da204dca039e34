"""examples/finetune_classifier.py as users run it, on a tiny random CLIP: it learns colours; bad input is one line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import (
    COLORS,
    EXAMPLES,
    IMAGE_SIZE,
    PROCESSOR_FILES,
    TOKENS,
    TRANSFORMERS_5,
    forget_accelerator,
    load_example,
    pil_processor,
    remove_tokenizer,
    run_example,
    tiny_processor,
)
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
RESULT_FILES = {"all_results.json", "samples.png"}
SHORT = ("--max_train_steps", 2, "--adapter_dim", 4)
LEARNING = ("--max_train_steps", 40, "--adapter_dim", 16, "--per_device_train_batch_size", 6, "--learning_rate", 5e-3)


def tiny_clip() -> CLIPModel:
    tokenizer = tiny_processor().tokenizer
    torch.manual_seed(0)
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**shared, "hidden_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {**shared, "hidden_size": 24, "image_size": IMAGE_SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=16)).eval()


def write_squares(folder, **sizes):
    """Splits of noisy squares in three colours, a folder for each; a class's name has an underscore."""
    for number, (split, size) in enumerate(sizes.items()):
        rng = np.random.default_rng(number)
        for color, value in COLORS.items():
            (folder / split / f"{color}_square").mkdir(parents=True)
            for index in range(size):
                noise = rng.integers(-30, 30, (36, 40, 3))
                pixels = np.clip(np.array(value) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{color}_square" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def script():
    return load_example("finetune_classifier")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    tiny_clip().save_pretrained(folder)
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = pil_processor("CLIPImageProcessor")(size={"shortest_edge": IMAGE_SIZE}, crop_size=crop)
    CLIPProcessor(images, tiny_processor().tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("data") / "squares", train=6, val=3, test=2)


@pytest.fixture
def run(script, clip, shared_data, tmp_path):
    """Runs the script in this process with flags; returns its results."""

    def run(*flags, data=shared_data, out=tmp_path / "out", model=clip):
        forget_accelerator()
        paths = ("--data_dir", data, "--output_dir", out, "--model_name_or_path", model)
        run_example(script, *paths, *flags)
        return json.loads((out / "all_results.json").read_text())

    return run


def test_it_learns_what_the_frozen_model_cannot_tell(run, tmp_path):
    results = run(*LEARNING)
    assert results["zero_shot_val_accuracy"] < 0.7 and results["zero_shot_test_accuracy"] < 0.7
    assert results["val_accuracy"] > 0.9 and results["test_accuracy"] > 0.8
    assert results["train_steps"] == 40 and results["train_seconds"] > 0
    assert results["classes"] == ["blue_square", "green_square", "red_square"]
    assert results["variant"] == "VL" and results["prompt_template"] == "a photo of a {}" and results["seed"] == 42

    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == ADAPTER_FILES | PROCESSOR_FILES | RESULT_FILES
    weights = load_file(out / "adapter_model.safetensors")
    assert results["trainable_parameters"] == sum(weight.numel() for weight in weights.values())
    assert results["total_parameters"] == tiny_clip().num_parameters() + results["trainable_parameters"]
    with Image.open(out / "samples.png") as samples:
        assert samples.width > 900 and len(samples.convert("RGB").getcolors(10**6)) > 100


def test_the_saved_adapter_gives_the_same_logits(run, script, clip, shared_data, tmp_path, monkeypatch):
    trained = []
    draw = script.draw_samples
    monkeypatch.setattr(script, "draw_samples", lambda model, *rest: trained.append(model) or draw(model, *rest))
    results = run(*LEARNING, "--variant", "VLC", "--prompt_template", "{}")
    out = tmp_path / "out"

    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip), out).eval()
    assert loaded.peft_config["default"].base_model_name_or_path == str(clip)
    processor = CLIPProcessor.from_pretrained(out)
    files = sorted((shared_data / "test").glob("*/*.png"))
    inputs = processor(
        text=["blue square", "green square", "red square"],
        images=[Image.open(file) for file in files],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = loaded(**inputs).logits_per_image
        torch.testing.assert_close(logits, trained[0](**inputs).logits_per_image, atol=0, rtol=0)
        assert not torch.allclose(logits, CLIPModel.from_pretrained(clip)(**inputs).logits_per_image, atol=1e-2)
    right = [results["classes"][row] == file.parent.name for row, file in zip(logits.argmax(1), files, strict=True)]
    assert results["test_accuracy"] == pytest.approx(sum(right) / len(right))


def test_without_a_test_split_validation_is_the_last_word(run, shared_data, tmp_path):
    data = shutil.copytree(shared_data, tmp_path / "data")
    shutil.rmtree(data / "test")
    results = run(*SHORT, data=data)
    assert results["test_accuracy"] is None and results["zero_shot_test_accuracy"] is None
    assert 0 <= results["val_accuracy"] <= 1


def test_the_adapter_of_the_best_epoch_is_kept_and_tested(run, script, monkeypatch, tmp_path):
    seen, figures = [], iter([0.1, 0.2, 0.3, 0.6, 0.5, 0.77])

    def accuracy(model, loader, texts, accelerator):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return next(figures)

    monkeypatch.setattr(script, "accuracy", accuracy)
    results = run("--per_device_train_batch_size", 6, "--num_train_epochs", 3, "--adapter_dim", 4)
    assert results["zero_shot_val_accuracy"] == 0.1 and results["zero_shot_test_accuracy"] == 0.2
    assert results["val_accuracy"] == 0.6 and results["test_accuracy"] == 0.77 and results["train_steps"] == 9
    best, last, tested = seen[3], seen[4], seen[5]
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(saved) == len(best) > 0
    for name, weight in best.items():
        assert torch.equal(tested[name], weight) and not torch.equal(last[name], weight)
        assert torch.equal(saved[name.replace(".default", "")], weight)


@pytest.mark.parametrize("value, unchanged", [("True", True), ("paper", False)])
def test_how_adapters_start(run, tmp_path, value, unchanged):
    """The rate is too small for a step to hide where the adapter came from."""
    run(*SHORT, "--init_weights", value, "--learning_rate", "1e-12", "--weight_decay", 0)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    second = [weight.abs().max() for name, weight in weights.items() if name.endswith("fc2.weight")]
    assert second and all((largest < 1e-6) == unchanged for largest in second)


def test_same_seed_same_bytes(run, tmp_path):
    def weights(name, *flags):
        run(*SHORT, "--per_device_train_batch_size", 4, *flags, out=tmp_path / name)
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert weights("first") == weights("second") != weights("third", "--seed", 43)


def test_results_are_replaced_only_when_told(run, tmp_path, capsys):
    run(*SHORT)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    _assert_one_line(run, capsys, "is not empty; name another, or add --overwrite_output_dir", *SHORT)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert run(*SHORT, "--overwrite_output_dir", "--seed", 7)["seed"] == 7


def _assert_one_line(run, capsys, problem, *flags, **places):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*flags, **places)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and problem in lines[0], lines


def _remove_images(folder):
    for file in folder.iterdir():
        file.unlink()


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-500])


DATA_PROBLEMS = {
    "no data": (shutil.rmtree, "train is not a folder (--data_dir)"),
    "no train": (lambda data: shutil.rmtree(data / "train"), "train is not a folder (--data_dir)"),
    "no val": (lambda data: shutil.rmtree(data / "val"), "val is not a folder (--data_dir)"),
    "no class": (lambda data: [shutil.rmtree(path) for path in (data / "val").iterdir()], "val has 0 class folders"),
    "one class": (
        lambda data: [shutil.rmtree(data / "train" / f"{color}_square") for color in ("red", "blue")],
        "train has 1 class folders; there must be two",
    ),
    "empty class": (lambda data: _remove_images(data / "train" / "red_square"), "red_square holds no image"),
    "empty test class": (lambda data: _remove_images(data / "test" / "red_square"), "red_square holds no image"),
    "unknown class": (
        lambda data: (data / "val" / "red_square").rename(data / "val" / "pink"),
        "pink is a class without training images; those have blue_square, green_square, red_square",
    ),
    "truncated image": (lambda data: _truncate(data / "train" / "red_square" / "5.png"), "red_square/5.png cannot be"),
    "no image": (
        lambda data: (data / "test" / "red_square" / "1.png").write_text("no image"),
        "test/red_square/1.png is not an image",
    ),
    "same text": (
        lambda data: shutil.copytree(data / "train" / "red_square", data / "train" / "red square"),
        "classes red square and red_square give the same text",
    ),
}


@pytest.mark.parametrize("spoil, problem", DATA_PROBLEMS.values(), ids=DATA_PROBLEMS)
def test_bad_data(run, shared_data, tmp_path, capsys, spoil, problem):
    data = shutil.copytree(shared_data, tmp_path / "data")
    spoil(data)
    _assert_one_line(run, capsys, problem, data=data)
    assert not (tmp_path / "out").exists()


MODEL_PROBLEMS = {
    "no model": (shutil.rmtree, "cannot be loaded"),
    "another kind": (
        lambda model: (model / "config.json").write_text('{"model_type": "clipseg"}'),
        "is of the kind clipseg; this works on clip models",
    ),
    "broken weights": (lambda model: (model / "model.safetensors").write_bytes(b"none"), "cannot be loaded"),
    "no tokenizer": (remove_tokenizer, "the tokenizer in" if TRANSFORMERS_5 else "cannot be loaded"),
}


@pytest.mark.parametrize("spoil, problem", MODEL_PROBLEMS.values(), ids=MODEL_PROBLEMS)
def test_a_bad_model(run, clip, tmp_path, capsys, monkeypatch, spoil, problem):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = shutil.copytree(clip, tmp_path / "model")
    spoil(model)
    _assert_one_line(run, capsys, problem, model=model)
    assert not (tmp_path / "out").exists()


FLAG_PROBLEMS = {
    "template": (["--prompt_template", "a photo"], "--prompt_template a photo has no {}"),
    "template too long": (["--prompt_template", "a long, long, long, long photo of {}"], "give the same text"),
    "variant": (["--variant", "S"], "--variant"),
    "adapter_dim": (["--adapter_dim", 0], "--adapter_dim 0 must be above 0"),
    "init_weights": (["--init_weights", "random"], "--init_weights"),
    "epochs": (["--num_train_epochs", -1], "--num_train_epochs -1 must be above 0"),
    "steps": (["--max_train_steps", 0], "--max_train_steps 0 must be above 0"),
    "batch": (["--per_device_train_batch_size", 0], "--per_device_train_batch_size 0 must be above 0"),
    "evaluation batch": (["--per_device_eval_batch_size", 0], "--per_device_eval_batch_size 0 must be above 0"),
    "learning_rate": (["--learning_rate", "inf"], "--learning_rate inf must be above 0 and finite"),
    "weight_decay": (["--weight_decay", "nan"], "--weight_decay nan must be finite and not negative"),
    "max_grad_norm": (["--max_grad_norm", 0], "--max_grad_norm 0.0 must be above 0"),
    "seed": (["--seed", -1], "--seed -1 must lie between"),
    "unknown flag": (["--method", "dense"], "unknown arguments: --method dense"),
}


@pytest.mark.parametrize("flags, problem", FLAG_PROBLEMS.values(), ids=FLAG_PROBLEMS)
def test_bad_flags(run, tmp_path, capsys, flags, problem):
    _assert_one_line(run, capsys, problem, *flags)
    assert not (tmp_path / "out").exists()


def test_output_dirs_that_cannot_serve(run, clip, shared_data, tmp_path, capsys):
    (tmp_path / "file").write_text("here already")
    _assert_one_line(run, capsys, "is a file; name a folder", out=tmp_path / "file")
    for out in (clip, shared_data):
        before = sorted(out.rglob("*"))
        _assert_one_line(run, capsys, "holds the data or the model", "--overwrite_output_dir", out=out)
        assert before == sorted(out.rglob("*"))


def test_a_loss_that_is_not_finite_stops(run, script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script.F, "cross_entropy", lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(SystemExit) as stop:
        run(*SHORT)
    assert stop.value.code == 2
    assert "error: the loss is nan at step 1; lower --learning_rate?" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_accelerate_launch(clip, shared_data, tmp_path):
    """Apart from the progress bar and the two lines on stdout it says nothing."""
    flags = {"data_dir": shared_data, "output_dir": tmp_path / "out", "model_name_or_path": clip, "max_train_steps": 2}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "bf16"]
    command = [*launch, str(EXAMPLES / "finetune_classifier.py")]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_steps"] == 2
    assert "Traceback" not in ran.stderr and "val_accuracy=" in ran.stderr
    assert ran.stdout.count("\n") == 2 and "validation accuracy" in ran.stdout
