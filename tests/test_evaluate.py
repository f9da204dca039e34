"""examples/evaluate.py as users run it: every figure against one made by hand, one process and two, and bad input."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    EXAMPLES,
    failure_of,
    forget_accelerator,
    move_trainable_weights,
    read_rows,
    run_example,
    write_dataset,
    write_rows,
)
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from segmenters import SAM3_IMAGE_SIZE, write_sam3_model
from torch.nn import functional

from peft_vlsm import DenseAdapterConfig
from peft_vlsm.segmentation.evaluation.surface import hausdorff_95
from peft_vlsm.segmentation.models.finetuned import load_base, load_finetuned, save_finetuned
from peft_vlsm.segmentation.models.processor import Processor

SCRIPT = EXAMPLES / "evaluate.py"
SCORES = ("dice", "iou", "precision", "recall", "hd95")
# Where the tiny models' logits are both above and below.
THRESHOLD = 0.48


@pytest.fixture(scope="module")
def script():
    """The script, under another name than the library's."""
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _adapter(base, folder, seed):
    model, processor = load_base(str(base))
    config = DenseAdapterConfig(variant="V", adapter_dim=4, modules_to_save=["decoder"])
    adapted = get_peft_model(model, config)
    move_trainable_weights(adapted)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.3 * seed)
    save_finetuned(adapted, processor, folder)
    return folder


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """The frozen base, and two adapters whose folders have the same name."""
    folder = tmp_path_factory.mktemp("models")
    return {"base": base, **{f"run{seed}/out": _adapter(base, folder / f"run{seed}" / "out", seed) for seed in (1, 2)}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five rows of one size; four rows of which one is larger, one has an empty mask and one lacks p3."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "discs", {"test": 5, "val": 2})
    write_dataset(folder / "mixed", {"test": 4})
    for kind in ("images", "masks"):
        file = folder / "mixed" / kind / "test_1.png"
        with Image.open(file) as image:
            image.resize((91, 67), Image.Resampling.NEAREST).save(file)
    Image.new("L", (40, 36)).save(folder / "mixed" / "masks" / "test_2.png")
    rows = read_rows(folder / "mixed", "test")
    del rows[3]["prompts"]["p3"]
    write_rows(folder / "mixed", "test", rows)
    return {name: folder / name for name in ("discs", "mixed")}


@pytest.fixture
def run(script, models, data, tmp_path):
    def run(*flags, adapters=(), data_dirs=(), output=tmp_path / "results"):
        forget_accelerator()
        adapters, data_dirs = adapters or [models["run1/out"]], data_dirs or [data["discs"]]
        run_example(script, "--adapter", *adapters, "--data_dir", *data_dirs, "--output", output, *flags)
        return _results(output)

    return run


def _results(output):
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared(script, models, data, tmp_path_factory):
    """Three models on two data sets, with flags repeated and in a row."""
    forget_accelerator()
    output = tmp_path_factory.mktemp("out") / "results"
    base, first, second = models.values()
    flags = ["--adapter", base, "--adapter", first, second, "--data_dir", data["discs"], f"--data_dir={data['mixed']}"]
    run_example(script, *flags, "--output", output, "--batch_size", 7, "--threshold", THRESHOLD)
    return output


@torch.no_grad()
def _masks(adapter, data_dir, side=32):
    """Predicted and true mask of every row and prompt, one at a time."""
    model, processor = load_finetuned(adapter)
    assert isinstance(processor, Processor)
    for row in read_rows(data_dir, "test"):
        with Image.open(data_dir / "images" / row["img_name"]) as image:
            image.load()
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        true = np.asarray(Image.open(data_dir / "masks" / row["mask_name"])) > 127
        for key, texts in row["prompts"].items():
            if key != "p0":
                text = texts if isinstance(texts, str) else texts[0]
                logits = model(pixel_values=pixels, **processor.tokenizer([text], return_tensors="pt")).logits
                whole = functional.interpolate(logits.reshape(1, 1, side, side), true.shape, mode="bilinear")[0, 0]
                yield row["img_name"], key, text, (whole.sigmoid() > THRESHOLD).numpy(), true


def _by_hand(predicted, true):
    both, either = (predicted & true).sum(), (predicted | true).sum()
    if not true.any():
        return [0.0, 0.0, 0.0, 0.0, np.hypot(*true.shape)] if predicted.any() else [1.0, 1.0, 1.0, 1.0, 0.0]
    sizes = predicted.sum() + true.sum()
    return [2 * both / sizes, both / either, both / predicted.sum(), both / true.sum(), hausdorff_95(predicted, true)]


def test_every_image_and_prompt_at_its_own_size(compared, models, data):
    rows = {(row["adapter"], row["data"], row["image"], row["prompt"]): row for row in _results(compared)["per_image"]}
    assert len(rows) == 3 * (5 * 3 + 4 * 3 - 1)
    for adapter, folder in models.items():
        for name, data_dir in data.items():
            for file, key, text, predicted, true in _masks(folder, data_dir):
                row = rows[adapter, name, str(data_dir / "images" / file), key]
                assert row["text"] == text
                assert row["true_pixels"] == true.sum()
                # Batches differ from single images in the last bits, which may turn a pixel.
                assert row["predicted_pixels"] == pytest.approx(predicted.sum(), abs=1)
                assert [row[score] for score in SCORES] == pytest.approx(_by_hand(predicted, true), abs=0.01)
    predicted = [row["predicted_pixels"] / 40 / 36 for row in rows.values() if row["data"] == "discs"]
    assert 0.05 < min(predicted) and max(predicted) < 0.95, "the threshold leaves something in and something out"


def test_the_matrix_sums_up_its_images(compared):
    results = _results(compared)
    names = [(row["adapter"], row["data"]) for row in results["matrix"]]
    assert names == [(a, d) for a in ("base", "run1/out", "run2/out") for d in ("discs", "mixed")]
    for row in [*results["matrix"], *results["per_prompt"]]:
        own = [
            image
            for image in results["per_image"]
            if all(image[name] == row[name] for name in ("adapter", "data", "prompt") if name in row)
        ]
        assert (row["cases"], row["images"]) == (len(own), len({image["image"] for image in own}))
        assert row["one_empty"] == sum(
            (image["predicted_pixels"] == 0) != (image["true_pixels"] == 0) for image in own
        )
        for score in SCORES:
            values = [image[score] for image in own]
            assert row[score] == pytest.approx(np.mean(values))
            assert row[f"{score}_std"] == pytest.approx(np.std(values))
            ends = [min(values), row[f"{score}_low"], row[score], row[f"{score}_high"], max(values)]
            assert all(low <= high + 1e-9 for low, high in pairwise(ends))
        assert row["dice_low"] < row["dice_high"]
    prompts = [row["prompt"] for row in results["per_prompt"]]
    assert prompts == ["p1", "p2", "p3"] * 6
    assert [row["cases"] for row in results["per_prompt"][:6]] == [5, 5, 5, 4, 4, 3]
    assert len({row["dice"] for row in results["matrix"]}) == 6, "models and data sets are all alike"


@pytest.mark.parametrize("table", ["matrix", "per_prompt", "per_image"])
def test_the_csv_files_hold_what_the_json_file_holds(compared, table):
    with (compared / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: str(value) for name, value in row.items()} for row in _results(compared)[table]]


def test_pictures(compared):
    cases = [f"{n}-{a}-on-{d}.png" for n, (a, d) in enumerate(_pairs(("base", "run1-out", "run2-out")), 1)]
    assert sorted(file.name for file in (compared / "cases").iterdir()) == sorted(cases)
    assert sorted(file.name for file in compared.iterdir()) == [
        *("cases", "matrix.csv", "matrix.png", "per_image.csv", "per_prompt.csv", "per_prompt.png", "results.json")
    ]
    for file in compared.rglob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_pictures_show_the_scored_masks_under_the_name_of_their_adapter(run, script, models, tmp_path, monkeypatch):
    drawn, batches, draw, score = [], [], script.contact_sheet, script.score_cases

    def noted(samples):
        drawn.append((samples, draw(samples)))
        return drawn[-1][1]

    monkeypatch.setattr(script, "contact_sheet", noted)
    monkeypatch.setattr(script, "score_cases", lambda *args: batches.append(args[3]) or score(*args))
    adapters = [models["base"], models["run1/out"]]
    results = run("--prompt", "p1", "--threshold", THRESHOLD, "--batch_size", 2, adapters=adapters)
    assert batches == [2, 2]
    for number, (adapter, (samples, sheet)) in enumerate(zip(("base", "out"), drawn, strict=True), 1):
        with Image.open(tmp_path / "results" / "cases" / f"{number}-{adapter}-on-discs.png") as picture:
            assert np.array_equal(picture, sheet)
        scored = {(row["dice"], row["predicted_pixels"]) for row in results["per_image"] if row["adapter"] == adapter}
        assert {(sample.dice, sample.predicted_mask.sum()) for sample in samples} <= scored


def _pairs(adapters):
    return [(adapter, name) for adapter in adapters for name in ("discs", "mixed")]


def test_the_table_is_printed(run, models, capsys):
    results = run("--prompt", "p2", "--prompt", "p3", adapters=[models["base"], models["run1/out"]])
    printed = capsys.readouterr().out
    for row in results["matrix"]:
        line = next(line for line in printed.splitlines() if line.startswith(row["adapter"].split("/")[-1]))
        assert f"{row['dice']:.3f} ± {row['dice_std']:.3f} [{row['dice_low']:.3f}, {row['dice_high']:.3f}]" in line
        assert line.endswith(f"{row['hd95']:.2f} ± {row['hd95_std']:.2f}")
    assert "Dice by prompt  p2     p3" in printed and "p1" not in printed
    assert [row["adapter"] for row in results["matrix"]] == ["base", "out"], "names are as short as they can be"


OPTIONS = {
    "prompt": (("--prompt", "p3", "p1"), {"cases": 10, "images": 5}),
    "the empty prompt": (("--prompt", "p0"), {"cases": 5, "images": 5}),
    "max_eval_samples": (("--max_eval_samples", "2"), {"cases": 6, "images": 2}),
    "split": (("--split", "val"), {"cases": 6, "images": 2}),
    "image_size": (("--image_size", "64"), {"cases": 15, "images": 5}),
    "one image": (("--max_eval_samples", "1"), {"cases": 3, "images": 1, "dice_low": None, "hd95_high": None}),
    "nothing is above 1": (
        ("--threshold", "1"),
        {"dice": 0, "one_empty": 15, "hd95": pytest.approx(53.814, abs=1e-3)},
    ),
    "all is above 0": (("--threshold", "0"), {"recall": 1, "one_empty": 0}),
}


@pytest.mark.parametrize("flags, expected", OPTIONS.values(), ids=OPTIONS)
def test_an_option(run, flags, expected):
    (row,) = run(*flags)["matrix"]
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("adapters, loads", [(["run1/out"], [0]), (["base", "run1/out", "run2/out"], [1, 2, 0, 1, 2])])
def test_every_adapter_is_tried_first_and_the_first_one_stays_loaded(
    run, script, models, monkeypatch, adapters, loads
):
    given, asked = [models[name] for name in adapters], []

    def noted(adapter, *rest):
        asked.append(given.index(Path(adapter)))
        return load_finetuned(adapter, *rest)

    monkeypatch.setattr(script, "load_finetuned", noted)
    results = run("--prompt", "p1", "--threshold", THRESHOLD, adapters=given)
    assert asked == loads
    assert len({row["dice"] for row in results["matrix"]}) == len(given)


def test_the_seed_decides_the_intervals_alone(run, tmp_path):
    first, again, other, fewer = (
        run(*flags, output=tmp_path / str(number))["matrix"][0]
        for number, flags in enumerate(((), (), ("--seed", 1), ("--bootstrap_samples", 50)))
    )
    assert first == again
    for row in (other, fewer):
        assert row["dice"] == first["dice"]
        assert any(row[name] != first[name] for name in row if name.endswith(("_low", "_high")))


def test_the_image_size_and_the_base_model_are_the_ones_that_are_named(run, base, models, tmp_path):
    default = run(output=tmp_path / "default")["matrix"][0]
    assert run("--image_size", 64, output=tmp_path / "64")["matrix"][0]["dice"] != default["dice"]
    moved = shutil.copytree(base, tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    both = [models["base"], models["run1/out"]]
    rows = run("--model_name_or_path", moved, adapters=both, output=tmp_path / "other base")["matrix"]
    assert rows[1]["dice"] != default["dice"]
    assert rows[0]["dice"] == run(adapters=both, output=tmp_path / "both")["matrix"][0]["dice"]


def test_sam3(run, data, tmp_path):
    folder = write_sam3_model(tmp_path / "sam3")
    adapter = _adapter_of_sam3(folder, tmp_path / "adapter")
    rows = run(adapters=[folder, adapter], data_dirs=[data["mixed"]])["matrix"]
    assert [row["cases"] for row in rows] == [11, 11]
    assert SAM3_IMAGE_SIZE == 64 and all(0 <= row["dice"] <= 1 for row in rows)


def _adapter_of_sam3(base, folder):
    model, processor = load_base(str(base))
    adapted = get_peft_model(model, DenseAdapterConfig(adapter_dim=4))
    move_trainable_weights(adapted)
    save_finetuned(adapted, processor, folder)
    return folder


# pycocotools' own arrays.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_with_phrases_that_are_absent(run, tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    images = [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in (1, 2)]
    for image in images:
        Image.new("RGB", (40, 30), "red").save(root / "images" / image["file_name"])
    square = {"segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]], "iscrowd": 0, "area": 400, "bbox": [5, 5, 20, 20]}
    annotations = [{"id": number, "image_id": number, "category_id": number, **square} for number in (1, 2)]
    categories = [{"id": 1, "name": "polyp"}, {"id": 2, "name": "lesion"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_test.json").write_text(json.dumps(content))
    results = run("--negatives", 1, data_dirs=[root])
    assert sorted((Path(row["image"]).name, row["text"], row["true_pixels"] > 0) for row in results["per_image"]) == [
        *(("1.png", "lesion", False), ("1.png", "polyp", True), ("2.png", "lesion", True), ("2.png", "polyp", False))
    ]
    assert (results["matrix"][0]["images"], results["matrix"][0]["cases"]) == (2, 4)


def test_two_processes_find_what_one_finds(compared, models, data, tmp_path):
    flags = ["--adapter", *models.values(), "--data_dir", *data.values(), "--output", tmp_path / "results"]
    flags += ["--batch_size", 7, "--threshold", THRESHOLD]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launcher, SCRIPT, *map(str, flags)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("masks scored") == 1
    both, alone = _results(tmp_path / "results"), _results(compared)
    for table in ("matrix", "per_prompt", "per_image"):
        assert len(both[table]) == len(alone[table]) > 0
        for ours, expected in zip(both[table], alone[table], strict=True):
            names = {name for name, value in expected.items() if isinstance(value, str)}
            assert all(ours[name] == expected[name] for name in names)
            numbers = {name: value for name, value in expected.items() if name not in names}
            assert {name: ours[name] for name in numbers} == pytest.approx(numbers, rel=1e-3)


JOINED = {
    "repeated": ("--adapter A --adapter B --output O", "--output O --adapter A B"),
    "in a row": ("--adapter A B --output O", "--output O --adapter A B"),
    "both": ("--adapter A B --data_dir D --adapter C", "--adapter A B C --data_dir D"),
    "with =": ("--adapter=A --adapter=B --adapter C", "--adapter A B C"),
    "= takes one value": ("--adapter=A stray --adapter B", "stray --adapter A B"),
    "with hyphens": ("--data-dir D --data_dir=E --batch-size 4", "--batch-size 4 --data_dir D E"),
    "without a value": ("--seed 1 --adapter", "--seed 1 --adapter"),
    "others stay": ("--batch_size 4 --seed=1", "--batch_size 4 --seed=1"),
    "a file of settings": ("settings.yaml", "settings.yaml"),
}


@pytest.mark.parametrize("given, expected", JOINED.values(), ids=JOINED)
def test_repeated_flags(script, given, expected):
    assert script.join_repeated(given.split()) == expected.split()


BAD_FLAGS = {
    "missing adapter": (("--adapter", "nowhere"), "--adapter nowhere does not exist"),
    "no adapter's name": (("--adapter",), "--adapter: expected at least one argument"),
    "not a model": (("--adapter", "{discs}"), "holds no fine-tuned model"),
    "adapter twice": (("--adapter", "{base}", "--adapter", "{base}/."), "is given twice"),
    "data twice": (("--data_dir", "{discs}", "{discs}"), "is given twice"),
    "missing data": (("--data_dir", "nowhere"), "nowhere is not a folder"),
    "missing split": (("--split", "train"), "train.json does not exist"),
    "unknown split": (("--split", "dev"), "argument --split: invalid choice"),
    "unknown prompt": (("--prompt", "p1", "p8"), "--prompt p8: no row has this prompt; rows have p1, p2, p3"),
    "a text for a prompt": (("--prompt", "a disc"), "--prompt a disc is unknown; give random, or one of p0 to p9"),
    "prompt twice": (("--prompt", "p1", "--prompt", "p1"), "--prompt p1 is given twice"),
    "threshold": (("--threshold", "1.5"), "--threshold 1.5 must lie between 0 and 1"),
    "batch size": (("--batch_size", "0"), "--batch_size 0 must be above 0"),
    "samples": (("--max_eval_samples", "0"), "--max_eval_samples 0 must be at least 1"),
    "seed": (("--seed", "-1"), "--seed -1 must not be negative"),
    "image size": (("--image_size", "30"), "--image_size 30 must be a multiple"),
    "base for whole models": (("--adapter", "{base}", "--model_name_or_path", "{base}"), "does nothing"),
    "wrong base": (("--model_name_or_path", "{discs}"), "cannot be loaded"),
    "output in a file": (("--output", "{discs}/anns/test.json/results"), "test.json/results was not written"),
    "no data": (("--data_dir",), "argument --data_dir/--data-dir: expected at least one argument"),
    "unknown flag": (("--adaptor", "x"), "unknown arguments: --adaptor x"),
    "negatives of no phrases": (("--negatives", "2"), "--negatives does nothing"),
}


@pytest.mark.parametrize("flags, problem", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags(script, models, data, tmp_path, capsys, flags, problem):
    given = [flag.format(base=models["base"], discs=data["discs"]) for flag in flags]
    defaults = {"--adapter": models["run1/out"], "--data_dir": data["discs"], "--output": tmp_path / "results"}
    missing = [part for flag, value in defaults.items() if flag not in given for part in (flag, value)]
    assert problem in failure_of(capsys, script, *given, *missing)
    assert not list(tmp_path.iterdir())


def _truncate(data):
    file = data / "images" / "test_3.png"
    file.write_bytes(file.read_bytes()[:-900])


def _remove_mask(data):
    (data / "masks" / "test_3.png").unlink()


def _resize_mask(data):
    Image.new("L", (10, 10)).save(data / "masks" / "test_3.png")


BAD_DATA = {"truncated": _truncate, "no mask": _remove_mask, "other size": _resize_mask}


@pytest.mark.parametrize("spoil", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_named_and_nothing_is_written(script, models, data, tmp_path, capsys, spoil):
    spoiled = shutil.copytree(data["discs"], tmp_path / "spoiled")
    spoil(spoiled)
    flags = ("--adapter", models["base"], "--data_dir", data["discs"], spoiled, "--output", tmp_path / "results")
    assert "test_3.png" in failure_of(capsys, script, *flags)
    assert [file.name for file in tmp_path.iterdir()] == ["spoiled"]


def test_results_are_not_overwritten(script, models, data, tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("kept")
    flags = ("--adapter", models["base"], "--data_dir", data["discs"], "--output", tmp_path)
    assert "exists already and is not overwritten" in failure_of(capsys, script, *flags)
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_broken_weights_are_named(script, models, data, tmp_path, capsys):
    broken = shutil.copytree(models["run1/out"], tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    save_file({name: value * float("nan") for name, value in weights.items()}, broken / "adapter_model.safetensors")
    flags = ("--adapter", broken, "--data_dir", data["discs"], "--output", tmp_path / "results")
    failure = failure_of(capsys, script, *flags)
    assert "broken" in failure and "not finite" in failure
    assert not (tmp_path / "results").exists()
