"""examples/predict.py as users run it: masks equal the model's own logits, whatever was fine-tuned; and bad input."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import load_example, move_trainable_weights, tiny_processor, write_dataset
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from segmenters import write_finetuned, write_sam3_model
from torch.nn import functional
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
from transformers.models.clipseg.modeling_clipseg import CLIPSegEncoderLayer

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig
from peft_vlsm.segmentation.models.finetuned import load_base, load_finetuned, save_finetuned

SCRIPT = Path(__file__).parents[1] / "examples" / "predict.py"
PROMPTS = ["red disc", "one blue disc"]
FOLDERS = ["1-red-disc", "2-one-blue-disc"]
KINDS = {
    "dense": DenseAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4),
    "dense and decoder": DenseAdapterConfig(adapter_dim=4, modules_to_save=["decoder"]),
    "shallow": ShallowAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4),
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "decoder": None,
    "full": None,
}


@pytest.fixture(scope="module")
def predict():
    return load_example("predict")


@pytest.fixture(scope="module")
def finetuned(base, tmp_path_factory):
    """Output folders of every kind, with weights that training has moved."""
    folder = tmp_path_factory.mktemp("finetuned")
    return write_finetuned(folder, base, KINDS)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images of 40 x 36 pixels, one of another size and greyscale, and a file that is no image."""
    folder = write_dataset(tmp_path_factory.mktemp("data") / "discs", {"test": 3}) / "images"
    with Image.open(folder / "test_0.png") as image:
        image.convert("L").resize((57, 23)).save(folder / "wide.tif")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def run(predict, finetuned, images, tmp_path, monkeypatch):
    """Runs the script in this process; returns the output folder."""

    def run(*flags, adapter=finetuned / "dense", image=images, prompts=PROMPTS, output=tmp_path / "out"):
        argv = ["--adapter", adapter, "--image", image, "--prompt", *prompts, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, argv)])
        predict.main()
        return output

    return run


@torch.no_grad()
def _logits(adapter, *files, side=32):
    """What the model answers, given one image and one prompt at a time, resized to the image: (prompts, H, W) each."""
    model, processor = load_finetuned(adapter)
    processor.image_processor.size = {"height": side, "width": side}
    for file in files:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        answers = []
        for prompt in PROMPTS:
            tokens = processor.tokenizer([prompt], return_tensors="pt")
            pixels = processor.image_processor(image, return_tensors="pt")
            logits = model(**tokens, **pixels).logits.reshape(1, 1, side, side)
            answers.append(functional.interpolate(logits, size=image.size[::-1], mode="bilinear")[0, 0])
        yield torch.stack(answers).numpy()


def _read(file):
    with Image.open(file) as image:
        return np.asarray(image)


def _rows(output):
    with (output / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", KINDS)
def test_the_masks_are_the_models_own(run, finetuned, base, images, kind):
    files = [*(images / f"test_{number}.png" for number in range(3)), images / "wide.tif"]
    expected = dict(zip(files, _logits(finetuned / kind, *files), strict=True))
    (frozen,) = _logits(base, files[0])
    assert np.abs(frozen - expected[files[0]]).max() > 1e-2, "training changed nothing"
    threshold = float(1 / (1 + np.exp(-np.median(np.stack([expected[file] for file in files[:3]])))))
    output = run("--threshold", threshold, "--save_probabilities", adapter=finetuned / kind)

    assert {file.name for file in output.iterdir()} == {
        *("masks", "overlays", "label_maps", "probabilities", "labels.json", "results.csv")
    }
    cut = math.log(threshold / (1 - threshold))
    for file in files:
        logits = expected[file]
        # Embeddings that are computed ahead differ in the last bits.
        sure = np.abs(logits - cut) > 1e-5
        assert sure.mean() > 0.98
        for number, folder in enumerate(FOLDERS):
            mask = _read(output / "masks" / folder / f"{file.stem}.png")
            assert mask.shape == logits.shape[1:] and mask.dtype == np.uint8
            assert np.array_equal((mask == 255)[sure[number]], (logits[number] > cut)[sure[number]])
            assert set(np.unique(mask)) <= {0, 255}
            probabilities = np.load(output / "probabilities" / folder / f"{file.stem}.npy")
            assert probabilities.dtype == np.float32
            assert np.allclose(probabilities, 1 / (1 + np.exp(-logits[number])), atol=1e-6)
        labels = _read(output / "label_maps" / f"{file.stem}.png")
        apart = sure.all(axis=0) & (np.abs(logits[0] - logits[1]) > 1e-5)
        assert apart.mean() > 0.95
        best = np.where((logits > cut).any(axis=0), logits.argmax(axis=0) + 1, 0)
        assert np.array_equal(labels[apart], best[apart])
    shares = [float(row["mask_share"]) for row in _rows(output)]
    assert 0.2 < np.mean(shares) < 0.8, "the test's threshold leaves something in and something out"


def test_overlays_tables_and_lines(run, finetuned, images, capsys):
    files = [*(images / f"test_{number}.png" for number in range(3)), images / "wide.tif"]
    peaks = sorted(logits.max() for answers in _logits(finetuned / "dense", *files) for logits in answers)
    between = 1 / (1 + math.exp(-(peaks[3] + peaks[4]) / 2))
    output = run("--threshold", between, "--save_probabilities")
    out, err = capsys.readouterr()
    assert f"passed over 1 entries of {images}" in out
    assert out.splitlines()[-1] == f"8 masks of 4 images, 4 of them empty; results in {output}"
    assert "8/8" in err and "warning" not in err

    assert json.loads((output / "labels.json").read_text()) == {"1": PROMPTS[0], "2": PROMPTS[1]}
    rows = _rows(output)
    assert [(row["image"], row["prompt"], row["label"]) for row in rows] == [
        (str(images / name), prompt, str(number))
        for name in ("test_0.png", "test_1.png", "test_2.png", "wide.tif")
        for number, prompt in enumerate(PROMPTS, start=1)
    ]
    assert [row["color"] for row in rows] == ["darkorange", "deepskyblue"] * 4
    for row in rows:
        mask = _read(output / row["mask"]) > 0
        place = Path(row["mask"]).relative_to("masks").with_suffix(".npy")
        probabilities = np.load(output / "probabilities" / place)
        assert float(row["mask_share"]) == pytest.approx(mask.mean(), abs=1e-6)
        if mask.any():
            assert float(row["mean_probability"]) == pytest.approx(probabilities[mask].mean(), abs=1e-6)
        else:
            assert row["mean_probability"] == ""
    assert sum(row["mask_share"] == "0.0" for row in rows) == 4
    for name in ("test_0", "test_1", "test_2"):
        masks = np.stack([_read(output / "masks" / folder / f"{name}.png") > 0 for folder in FOLDERS])
        picture, image = (_read(folder / f"{name}.png") for folder in (output / "overlays", images))
        changed = (picture != image).any(axis=-1)
        assert np.array_equal(changed, masks.any(axis=0))


def test_each_prompt_has_its_colour(run, finetuned, images):
    """With threshold 0 each prompt covers everything: the overlay of the second lies above the first."""
    both = run("--threshold", 0, image=images / "test_0.png")
    one = run("--threshold", 0, image=images / "test_0.png", prompts=PROMPTS[1:], output=both.with_name("one"))
    pictures = [_read(output / "overlays" / "test_0.png") for output in (both, one)]
    assert tuple(pictures[0][0, 0]) == (0, 191, 255) and tuple(pictures[1][0, 0]) == (255, 140, 0)


def test_one_prompt_needs_no_label_map(run, images):
    output = run(image=images / "wide.tif", prompts=["disc/../../disc"])
    files = sorted(str(file.relative_to(output)) for file in output.rglob("*") if file.is_file())
    assert files == ["labels.json", "masks/1-disc-disc/wide.png", "overlays/wide.png", "results.csv"]


@pytest.mark.parametrize("kind", ["dense", "shallow", "full"])
def test_batches_change_nothing_and_each_prompt_and_image_is_embedded_once(
    run, finetuned, monkeypatch, tmp_path, kind
):
    """Of four images and two prompts, by the rows that reach the first layer of an encoder."""
    rows, batches = Counter(), []
    layer_forward, forward = CLIPSegEncoderLayer.forward, CLIPSegForImageSegmentation.forward

    def noted_layer(self, hidden_states, *args, **inputs):
        rows[hidden_states.shape[-1]] += len(hidden_states)
        return layer_forward(self, hidden_states, *args, **inputs)

    def noted_forward(self, *args, **inputs):
        batches.append(len(inputs["pixel_values"]))
        return forward(self, *args, **inputs)

    monkeypatch.setattr(CLIPSegEncoderLayer, "forward", noted_layer)
    monkeypatch.setattr(CLIPSegForImageSegmentation, "forward", noted_forward)
    outputs = []
    for size in (1, 3, 16):
        output = tmp_path / str(size)
        outputs.append(run("--batch_size", size, "--save_probabilities", adapter=finetuned / kind, output=output))
        # The text states have 16 features and the vision states 24, in four layers each.
        assert rows == {16: 4 * 2, 24: 4 * 4}
        rows.clear()
    assert batches == [1] * 8 + [3, 3, 2] + [8]
    for file in (outputs[0] / "probabilities").rglob("*.npy"):
        for other in outputs[1:]:
            assert np.allclose(np.load(file), np.load(other / file.relative_to(outputs[0])), atol=1e-6)


def test_an_image_that_lies_on_its_side_is_turned_upright(run, finetuned, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images / "test_0.png") as image:
        image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    output = run("--threshold", 0.45, "--save_probabilities", image=tmp_path / "photo.jpg")
    mask = _read(output / "masks" / FOLDERS[0] / "photo.png")
    assert mask.shape == (40, 36) == _read(output / "overlays" / "photo.png").shape[:2]
    (logits,) = _logits(finetuned / "dense", tmp_path / "photo.jpg")
    probabilities = np.load(output / "probabilities" / FOLDERS[0] / "photo.npy")
    assert np.allclose(probabilities, 1 / (1 + np.exp(-logits[0])), atol=1e-6)


def test_another_image_size(run, finetuned, images):
    output = run("--image_size", 64, "--save_probabilities", image=images / "wide.tif")
    (logits,) = _logits(finetuned / "dense", images / "wide.tif", side=64)
    probabilities = np.load(output / "probabilities" / FOLDERS[1] / "wide.npy")
    assert np.allclose(probabilities, 1 / (1 + np.exp(-logits[1])), atol=1e-6)


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    """A SAM3 and an adapter for it, trained with images of 64 pixels a side."""
    folder = tmp_path_factory.mktemp("sam3")
    model, processor = load_base(str(write_sam3_model(folder / "base")))
    model = get_peft_model(model, DenseAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4))
    move_trainable_weights(model)
    save_finetuned(model, processor, folder / "adapter")
    return folder


@pytest.mark.parametrize("side", [64, 32], ids=["the size of training", "another size"])
def test_sam3_and_its_presence(run, sam3, images, side):
    output = run("--image_size", side, "--save_probabilities", adapter=sam3 / "adapter", image=images / "wide.tif")
    model, processor = load_finetuned(sam3 / "adapter", image_size=side)
    with Image.open(images / "wide.tif") as image:
        pixels = processor.image_processor(image.convert("RGB"), size={"height": side, "width": side})
    pixels = torch.from_numpy(np.stack(pixels["pixel_values"]))
    for number, row in enumerate(_rows(output)):
        with torch.no_grad():
            tokens = processor.tokenizer([PROMPTS[number]], return_tensors="pt")
            answer = model(**tokens, pixel_values=pixels)
        logits = functional.interpolate(answer.semantic_seg, size=(side, side), mode="bilinear")
        logits = functional.interpolate(logits, size=(23, 57), mode="bilinear")[0, 0]
        probabilities = np.load(output / "probabilities" / FOLDERS[number] / "wide.npy")
        assert np.allclose(probabilities, logits.sigmoid(), atol=1e-5)
        assert float(row["presence"]) == pytest.approx(answer.presence_logits.sigmoid().item(), abs=1e-5)


def _write_table(file, *rows):
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file


@pytest.fixture
def run_table(predict, finetuned, tmp_path, monkeypatch):
    """Runs the script on a table; returns the output folder."""

    def run_table(table, *flags):
        argv = ["--adapter", finetuned / "dense", "--csv", table, "--output", tmp_path / "out", *flags]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, argv)])
        predict.main()
        return tmp_path / "out"

    return run_table


def test_a_table_of_images_and_prompts(run, run_table, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "data" / "images")
    table = _write_table(
        tmp_path / "data" / "table.csv",
        ["note", "prompt", "image"],
        ["", PROMPTS[1], "images/wide.tif"],
        ["", PROMPTS[0], "images/test_0.png"],
        ["", PROMPTS[0], "images/wide.tif"],
        ["again", PROMPTS[1], "images/wide.tif"],
        ["", "Red disc", "images/test_0.png"],
    )
    output = run_table(table, "--save_probabilities")
    assert "passed over 1 rows of" in (out := capsys.readouterr().out) and "4 masks of 2 images" in out
    folder = tmp_path.resolve() / "data" / "images"
    assert [(row["image"], row["prompt"], row["label"], row["slice"]) for row in _rows(output)] == [
        (str(folder / "wide.tif"), PROMPTS[1], "1", ""),
        (str(folder / "wide.tif"), PROMPTS[0], "2", ""),
        (str(folder / "test_0.png"), PROMPTS[0], "2", ""),
        (str(folder / "test_0.png"), "Red disc", "3", ""),
    ]
    plain = run("--save_probabilities", output=tmp_path / "plain")
    pairs = {"1-one-blue-disc": FOLDERS[1], "2-red-disc": FOLDERS[0]}
    for ours, theirs in pairs.items():
        files = [folder / name / "wide.npy" for folder, name in ((output, ours), (plain, theirs))]
        files = [file.parents[1] / "probabilities" / file.parent.name / file.name for file in files]
        assert np.allclose(*map(np.load, files), atol=1e-6)
    assert not (output / "masks" / "1-one-blue-disc" / "test_0.png").exists()
    assert set(np.unique(_read(output / "label_maps" / "test_0.png"))) <= {0, 2, 3}


TABLE_PROBLEMS = {
    "missing": (None, "table.csv cannot be read"),
    "empty": ([], "lacks the column 'image'; its first line names: none"),
    "no row": ([["image", "prompt"]], "has no row"),
    "column": ([["image", "text"], ["a.png", "disc"]], "lacks the column 'prompt'; its first line names: image, text"),
    "prompt": ([["image", "prompt"], ["a.png", " "]], "table.csv line 2: the prompt ' ' is empty"),
    "long row": ([["image", "prompt"], ["a.png", "a disc", " red"]], "table.csv line 2 has more cells than the first"),
    "short row": ([["image", "prompt"], ["a.png"]], "table.csv line 2: the prompt '' is empty"),
    "image": ([["image", "prompt"], ["no.png", "disc"]], "table.csv line 2: the image 'no.png' is not there"),
    "no image": ([["image", "prompt"], ["", "disc"]], "table.csv line 2: the image '' is not there"),
    "outside": ([["image", "prompt"], ["../a.png", "disc"]], "'../a.png' lies outside the table's folder"),
    "absolute": ([["image", "prompt"], ["/etc/passwd", "disc"]], "'/etc/passwd' lies outside the table's folder"),
    "null": ([["image", "prompt"], ["a\0.png", "disc"]], "line"),
    "not an image": ([["image", "prompt"], ["table.csv", "disc"]], "table.csv is not an image"),
}


@pytest.mark.parametrize("rows, problem", TABLE_PROBLEMS.values(), ids=TABLE_PROBLEMS)
def test_tables_that_cannot_serve(run_table, images, tmp_path, capsys, rows, problem):
    (tmp_path / "data").mkdir()
    shutil.copy(images / "test_0.png", tmp_path / "a.png")
    shutil.copy(images / "test_0.png", tmp_path / "data" / "a.png")
    table = tmp_path / "data" / "table.csv"
    if rows is not None:
        _write_table(table, *rows)
    _assert_one_line(lambda: run_table(table), tmp_path, capsys, problem)


@pytest.mark.parametrize("flags", [["--image", "a.png"], ["--prompt", "disc"]], ids=["image", "prompt"])
def test_a_table_beside_flags(run_table, tmp_path, capsys, flags):
    problem = f"--csv {tmp_path / 't.csv'} names images and prompts itself; leave out {flags[0]}"
    _assert_one_line(lambda: run_table(tmp_path / "t.csv", *flags), tmp_path, capsys, problem)


def test_a_scan_becomes_slices_and_a_volume_of_masks(run, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    voxels = np.random.default_rng(0).integers(0, 900, (20, 30, 3)).astype(np.int16)
    affine = np.array([[0, -2.0, 0, 9], [1.5, 0, 0, -4], [0, 0, -3.0, 1], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    output = run("--threshold", 0.45, image=tmp_path / "scan.nii.gz", output=tmp_path / "out")
    assert [row["slice"] for row in _rows(output)] == ["0", "0", "1", "1", "2", "2"]
    for folder in FOLDERS:
        volume = nibabel.load(output / "volumes" / folder / "scan.nii.gz")
        masks = np.asarray(volume.dataobj)
        assert volume.shape == voxels.shape and np.array_equal(volume.affine, affine)
        assert volume.get_data_dtype() == np.uint8 and set(np.unique(masks)) <= {0, 1}
        # Down in the file is up in the patient; its first axis runs to the front and its second one to the left.
        for index in range(3):
            shown = _read(output / "masks" / folder / f"scan-00{index}.png") > 0
            assert shown.shape == (20, 30)
            assert np.array_equal(shown, masks[::-1, :, 2 - index])
    assert 0.01 < masks.mean() < 0.99


def test_bad_scans(run, tmp_path, capsys):
    pytest.importorskip("nibabel")
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    _assert_one_line(run, tmp_path, capsys, "scan.nii.gz cannot be read as NIfTI", image=tmp_path / "scan.nii.gz")


def test_a_base_model_that_moved_is_given(run, base, finetuned, images, tmp_path):
    adapter = shutil.copytree(finetuned / "dense", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))
    outputs = [
        run("--save_probabilities", *flags, adapter=folder, output=tmp_path / name)
        for name, folder, flags in (
            ("there", finetuned / "dense", []),
            ("moved", adapter, ["--model_name_or_path", base]),
        )
    ]
    for file in (outputs[0] / "probabilities").rglob("*.npy"):
        assert np.array_equal(np.load(file), np.load(outputs[1] / file.relative_to(outputs[0])))


def test_a_long_prompt_is_cut_with_a_warning(run, images, capsys):
    """The tiny tokenizer has a token a letter and 24 tokens a prompt, two of them its ends."""
    outputs = [
        run("--save_probabilities", image=images / "wide.tif", prompts=["disc", prompt], output=images.parent / name)
        for name, prompt in (("fits", "a" * 22), ("long", "a" * 22 + "b"))
    ]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and f"only the first 24 tokens of --prompt '{'a' * 22}b' count" in warnings[0]
    assert json.loads((outputs[1] / "labels.json").read_text())["2"] == "a" * 22 + "b"
    files = [next((output / "probabilities").glob("2-*/wide.npy")) for output in outputs]
    assert np.allclose(*map(np.load, files), atol=1e-2)


def test_plain_python(finetuned, images, tmp_path):
    """As a process of its own."""
    flags = ["--adapter", finetuned / "shallow", "--image", images, "--prompt", *PROMPTS, "--output", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *flags]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line]
    assert "8/8" in lines[-1] and all(line.startswith("predicting: ") for line in lines), ran.stderr
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 8


def test_several_processes_are_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _assert_one_line(run, tmp_path, capsys, "predict.py works in one process")


def _assert_one_line(run, tmp_path, capsys, problem, *flags, **places):
    before = _everything(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(*flags, **places)
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("predicting")]
    assert stop.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and problem in lines[0], lines
    assert _everything(tmp_path) == before


def _everything(folder):
    return {file: file.is_file() and file.read_bytes() for file in folder.rglob("*")}


FLAG_PROBLEMS = {
    "threshold": (["--threshold", 1.5], {}, "--threshold 1.5 must lie between 0 and 1"),
    "negative threshold": (["--threshold", "-0.1"], {}, "--threshold -0.1 must lie between 0 and 1"),
    "threshold nan": (["--threshold", "nan"], {}, "--threshold nan must lie between 0 and 1"),
    "threshold word": (["--threshold", "high"], {}, "--threshold"),
    "batch": (["--batch_size", 0], {}, "--batch_size 0 must be above 0"),
    "image_size": (["--image_size", 0], {}, "--image_size 0 must be above 0"),
    "image_size and patch": (
        ["--image_size", 30],
        {},
        "--image_size 30 must be a multiple of the model's patch size 8",
    ),
    "unknown flag": (["--thresholds", 1], {}, "unknown arguments: --thresholds 1"),
    "empty prompt": ([], {"prompts": ["disc", " "]}, "--prompt ' ' is empty"),
    "prompt of bytes": ([], {"prompts": ["caf\udce9"]}, "--prompt 'caf\\udce9' is empty or no text"),
    "no prompt": ([], {"prompts": []}, "--prompt"),
    "the same prompt": ([], {"prompts": ["Disc", "disc"]}, "--prompt 'Disc' and 'disc' are the same to the model"),
    "the same but for its end": ([], {"prompts": ["a" * 23, "a" * 24]}, "are the same to the model"),
    "prompts": ([], {"prompts": [f"disc {number}" for number in range(256)]}, "--prompt: 256 prompts"),
    "adapter": ([], {"adapter": "nowhere"}, "--adapter nowhere does not exist"),
    "adapter path": ([], {"adapter": "/nowhere/at/all"}, "--adapter /nowhere/at/all does not exist"),
    "image": ([], {"image": "nowhere.png"}, "--image nowhere.png does not exist"),
    "long image name": ([], {"image": "a" * 300}, "aaa does not exist"),
    "long output name": ([], {"output": Path("a" * 300)}, "was not written"),
    "base of a whole model": (
        ["--model_name_or_path", "m"],
        {"adapter": "full"},
        "--model_name_or_path m does nothing",
    ),
    "no base": (["--model_name_or_path", "/nowhere"], {"adapter": "dense"}, "the model /nowhere cannot be loaded"),
}


@pytest.mark.parametrize("flags, places, problem", FLAG_PROBLEMS.values(), ids=FLAG_PROBLEMS)
def test_bad_flags(run, finetuned, tmp_path, capsys, flags, places, problem):
    if places.get("adapter") in KINDS:
        places = places | {"adapter": finetuned / places["adapter"]}
    _assert_one_line(run, tmp_path, capsys, problem, *flags, **places)


def test_an_adapter_that_the_hub_does_not_have(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _assert_one_line(run, tmp_path, capsys, "runs/out cannot be loaded", adapter="runs/out")


def test_folders_without_an_adapter(run, tmp_path, capsys, images):
    (tmp_path / "empty").mkdir()
    for adapter in (tmp_path / "empty", images, images / "notes.txt"):
        _assert_one_line(run, tmp_path, capsys, f"{adapter} holds no fine-tuned model", adapter=adapter)


def _write_base(folder, base, **text_settings):
    config = CLIPSegConfig.from_pretrained(base).to_dict()
    config["text_config"].update(text_settings)
    CLIPSegForImageSegmentation(CLIPSegConfig.from_dict(config)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


BASE_PROBLEMS = {
    "wider, dense": ("dense", {"hidden_size": 32}, "size mismatch"),
    "wider, shallow": ("shallow", {"hidden_size": 32}, "size mismatch"),
    "shallower, dense": ("dense", {"num_hidden_layers": 1}, "the adapter was made for another model"),
    "shallower, shallow": ("shallow", {"num_hidden_layers": 1}, "the adapter was made for another model"),
    "shallower, lora": ("lora", {"num_hidden_layers": 1}, "12 weights have no counterpart"),
    "deeper, lora": ("lora", {"num_hidden_layers": 6}, "8 weights have no counterpart"),
}


@pytest.mark.parametrize("kind, text_settings, problem", BASE_PROBLEMS.values(), ids=BASE_PROBLEMS)
def test_a_base_of_another_shape(run, base, finetuned, tmp_path, capsys, kind, text_settings, problem):
    other = _write_base(tmp_path / "other", base, **text_settings)
    _assert_one_line(run, tmp_path, capsys, problem, "--model_name_or_path", other, adapter=finetuned / kind)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-300])


IMAGE_PROBLEMS = {
    "corrupt": (lambda folder: (folder / "test_1.png").write_bytes(b"\x89PNG"), "test_1.png is not an image"),
    "truncated": (lambda folder: _truncate(folder / "test_1.png"), "test_1.png cannot be read as an image"),
    "not an image": (lambda folder: (folder / "n.png").write_text("text"), "n.png is not an image that Pillow reads"),
    "broken link": (lambda folder: (folder / "l.png").symlink_to("nowhere"), "l.png does not exist"),
    "16 bits": (
        lambda folder: Image.fromarray(np.full((9, 9), 999, np.uint16)).save(folder / "deep.png"),
        "deep.png has more than 8 bits a channel",
    ),
    "no image": (
        lambda folder: [file.unlink() for file in folder.glob("*.[pt]*") if file.suffix != ".txt"],
        "no image",
    ),
}


@pytest.mark.parametrize("spoil, problem", IMAGE_PROBLEMS.values(), ids=IMAGE_PROBLEMS)
def test_a_folder_with_a_bad_image(run, predict, images, tmp_path, capsys, monkeypatch, spoil, problem):
    """Shows before the model is loaded."""
    monkeypatch.setattr(predict, "load_predictor", None)
    folder = shutil.copytree(images, tmp_path / "images")
    spoil(folder)
    _assert_one_line(run, tmp_path, capsys, problem, image=folder)


def test_a_file_that_is_no_image(run, images, tmp_path, capsys):
    _assert_one_line(run, tmp_path, capsys, "notes.txt is not an image", image=images / "notes.txt")


def test_an_image_that_is_damaged_meanwhile_leaves_nothing_half_written(
    run, predict, images, tmp_path, capsys, monkeypatch
):
    folder = shutil.copytree(images, tmp_path / "images")
    _truncate(folder / "test_2.png")
    monkeypatch.setattr(predict, "check_images", lambda files: None)
    _assert_one_line(run, tmp_path, capsys, "test_2.png cannot be read", "--batch_size", 1, image=folder)


def test_weights_that_are_not_finite(run, finetuned, tmp_path, capsys):
    broken = shutil.copytree(finetuned / "decoder", tmp_path / "broken")
    weights = load_file(broken / "decoder.safetensors")
    weights["decoder.film_mul.bias"][0] = float("nan")
    save_file(weights, broken / "decoder.safetensors")
    _assert_one_line(run, tmp_path, capsys, "decoder.film_mul.bias are not finite", adapter=broken)


def test_outputs_that_cannot_serve(run, images, tmp_path, capsys):
    (tmp_path / "file").write_text("here already")
    cases = {
        tmp_path / "file": "exists already and is not overwritten",
        tmp_path / "file" / "below": "was not written",
        images: "exists already and is not overwritten",
        tmp_path: "exists already and is not overwritten",
    }
    for output, problem in cases.items():
        _assert_one_line(run, tmp_path, capsys, problem, output=output)
    (tmp_path / "empty").mkdir()
    assert (run(output=tmp_path / "empty") / "results.csv").is_file()
