"""evaluate.py and predict.py take every source of data, and find the same for the same images in each."""

import csv
import importlib.util
import json
import sys

import datasets
import numpy as np
import pytest
from builders import EXAMPLES, failure_of, forget_accelerator, load_example, run_example, write_rows
from PIL import Image
from source_data import png, write_metadata, write_parquet, write_tar

from peft_vlsm.segmentation.errors import InputError

WIDTH, HEIGHT = 37, 30
PROMPTS = ("red disc", "a square", "one blue disc")
SCORES = ("dice", "iou", "precision", "recall", "hd95", "predicted_pixels", "true_pixels")
# Where the tiny model's logits are both above and below.
THRESHOLD = ("--threshold", 0.48)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def evaluate():
    """The script, under another name than the library's."""
    spec = importlib.util.spec_from_file_location("evaluate_sources", EXAMPLES / "evaluate.py")
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images():
    return np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH, 3)).astype(np.uint8)


def boxes():
    return [(4 + 3 * number, 5, 20 + 3 * number, 21 - number) for number in range(3)]


def masks():
    drawn = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    for mask, (left, top, right, bottom) in zip(drawn, boxes(), strict=True):
        mask[top:bottom, left:right] = 255
    return drawn


def medvlsm(folder, keys=("p1",)):
    for name in ("anns", "images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images(), masks(), strict=True)):
        (folder / "images" / f"{number}.png").write_bytes(png(image))
        (folder / "masks" / f"{number}.png").write_bytes(png(mask))
    rows = [
        {
            **{"img_name": f"{number}.png", "mask_name": f"{number}.png"},
            "prompts": {"p0": "", **{key: text if key == keys[-1] else f"{key} {number}" for key in keys}},
        }
        for number, text in enumerate(PROMPTS)
    ]
    write_rows(folder, "test", rows)
    return ("--data_dir", folder)


def coco(folder):
    annotations = []
    for number, (left, top, right, bottom) in enumerate(boxes()):
        polygon = [left, top, right, top, right, bottom, left, bottom]
        annotations.append({"id": number, "image_id": number, "category_id": number, "segmentation": [polygon]})
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(3)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(PROMPTS)],
        "annotations": annotations,
    }
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True)
    (folder / "annotations" / "instances_test.json").write_text(json.dumps(content), encoding="utf-8")
    for number, image in enumerate(images()):
        (folder / "images" / f"{number}.png").write_bytes(png(image))
    return ("--data_dir", folder)


def coco_by_flags(folder):
    coco(folder)
    return ("--test_annotations", folder / "annotations" / "instances_test.json", "--image_root", folder / "images")


def imagefolder(folder):
    (folder / "test").mkdir(parents=True)
    lines = []
    for number, (image, mask, text) in enumerate(zip(images(), masks(), PROMPTS, strict=True)):
        (folder / "test" / f"{number}.png").write_bytes(png(image))
        (folder / "test" / f"{number}_mask.png").write_bytes(png(mask))
        lines.append({"file_name": f"{number}.png", "mask_file_name": f"{number}_mask.png", "prompt": text})
    write_metadata(folder / "test", lines)
    return ("--data_dir", folder)


def records(image="image", mask="mask", prompt="prompt"):
    """Rows of a table, with columns of these names."""
    cells = [[{"bytes": png(array), "path": None} for array in arrays] for arrays in (images(), masks())]
    return [dict(zip((image, mask, prompt), row, strict=True)) for row in zip(*cells, PROMPTS, strict=True)]


def parquet(folder):
    write_parquet(folder / "test" / "0.parquet", records()[:2])
    write_parquet(folder / "test" / "1.parquet", records()[2:])
    return ("--data_dir", folder)


def columns(folder):
    write_parquet(folder / "0.parquet", records("scan", "truth", "finding"))
    names = ("--image_column", "scan", "--mask_column", "truth", "--prompt_column", "finding")
    return ("--test_data_dir", folder, *names)


def webdataset(folder):
    rows = [
        {"png": row["image"]["bytes"], "mask.png": row["mask"]["bytes"], "txt": row["prompt"].encode()}
        for row in records()
    ]
    write_tar(folder / "test" / "0.tar", rows)
    return ("--data_dir", folder)


def by_name(folder):
    imagefolder(folder)
    return ("--dataset_name", folder)


def streamed(folder):
    return (*parquet(folder), "--streaming")


SOURCES = {
    "MedVLSM": (medvlsm, "0"),
    "COCO": (coco, "0"),
    "COCO by flags": (coco_by_flags, "0"),
    "image folder": (imagefolder, "0"),
    "Parquet": (parquet, "test-row-0"),
    "columns": (columns, "data-row-0"),
    "WebDataset": (webdataset, "test-row-0"),
    "by its name": (by_name, "data-test-row-0"),
    "streamed": (streamed, "test-row-0"),
}


@pytest.fixture(scope="module")
def run_evaluate(evaluate, base):
    def run(output, *flags):
        forget_accelerator()
        run_example(evaluate, "--adapter", base, "--output", output, "--bootstrap_samples", 10, *THRESHOLD, *flags)
        return json.loads((output / "results.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="module")
def run_predict(base):
    def run(output, *flags):
        run_example(load_example("predict"), "--adapter", base, "--output", output, *THRESHOLD, *flags)
        with (output / "results.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return run


@pytest.fixture(scope="module")
def expected(run_evaluate, run_predict, tmp_path_factory):
    """What both scripts find in the MedVLSM layout."""
    folder = tmp_path_factory.mktemp("expected")
    flags = medvlsm(folder / "data")
    scores = run_evaluate(folder / "scores", *flags)["per_image"]
    pictures = [_pixels(folder / "masks" / row["mask"]) for row in run_predict(folder / "masks", *flags)]
    assert 0.05 < np.mean(pictures) / 255 < 0.95, "the threshold leaves something in and something out"
    return scores, pictures


def _pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.mark.parametrize("source, first", SOURCES.values(), ids=SOURCES)
def test_the_same_images_get_the_same_scores(run_evaluate, expected, tmp_path, source, first):
    results = run_evaluate(tmp_path / "out", *source(tmp_path / "data"))
    rows = results["per_image"]
    assert [row["text"] for row in rows] == list(PROMPTS)
    for row, other in zip(rows, expected[0], strict=True):
        assert {name: row[name] for name in SCORES} == {name: other[name] for name in SCORES}
    assert [row["images"] for row in results["matrix"]] == [3] and len({row["image"] for row in rows}) == 3
    assert ("row 0" in rows[0]["image"]) == ("row-0" in first)


@pytest.mark.parametrize("source, first", SOURCES.values(), ids=SOURCES)
def test_the_same_images_get_the_same_masks(run_predict, expected, tmp_path, source, first):
    rows = run_predict(tmp_path / "out", *source(tmp_path / "data"))
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    for row, mask in zip(rows, expected[1], strict=True):
        assert np.array_equal(_pixels(tmp_path / "out" / row["mask"]), mask)
    assert rows[0]["mask"] == f"masks/1-red-disc/{first}.png"
    assert ("row 0" in rows[0]["image"]) == ("row-0" in first)
    assert (tmp_path / "out" / "overlays" / f"{first}.png").is_file()
    # Blue marks true masks.
    assert (_pixels(tmp_path / "out" / "samples.png") == (0, 140, 255)).all(-1).sum() > 100


def test_data_sets_beside_one_another_are_columns(run_evaluate, tmp_path):
    flags = [*medvlsm(tmp_path / "a"), *imagefolder(tmp_path / "b"), *by_name(tmp_path / "c")]
    flags += ["--test_data_dir", tmp_path / "b" / "test", *coco_by_flags(tmp_path / "d")]
    rows = run_evaluate(tmp_path / "out", *flags)["matrix"]
    assert [row["data"] for row in rows] == ["a", "b", "c", "test", "instances_test.json"]
    assert len({row["dice"] for row in rows}) == 1


EVALUATED = {
    "all": ((), ["p1", "p2"] * 3, ["p1 0", PROMPTS[0], "p1 1", PROMPTS[1], "p1 2", PROMPTS[2]]),
    "random": (("--prompt", "random"), ["p2"] * 3, list(PROMPTS)),
    "p1": (("--prompt", "p1"), ["p1"] * 3, ["p1 0", "p1 1", "p1 2"]),
    "override": (("--override_prompt", "a thing"), ["override"] * 3, ["a thing"] * 3),
    "limit": (("--max_eval_samples", 1, "--prompt", "p2"), ["p2"], [PROMPTS[0]]),
}


@pytest.mark.parametrize("flags, keys, texts", EVALUATED.values(), ids=EVALUATED)
def test_prompts_that_are_evaluated(run_evaluate, tmp_path, flags, keys, texts):
    results = run_evaluate(tmp_path / "out", *medvlsm(tmp_path / "data", ("p1", "p2")), *flags)
    assert [(row["prompt"], row["text"]) for row in results["per_image"]] == list(zip(keys, texts, strict=True))
    assert [row["prompt"] for row in results["per_prompt"]] == sorted(set(keys))


PREDICTED = {
    "the evaluation prompt": ((), [[text] for text in PROMPTS], True),
    "random": (("--prompt", "random"), [[text] for text in PROMPTS], True),
    "p1": (("--prompt", "p1"), [["p1 0"], ["p1 1"], ["p1 2"]], True),
    "two": (("--prompt", "p1", "p2"), [["p1 0", PROMPTS[0]], ["p1 1", PROMPTS[1]], ["p1 2", PROMPTS[2]]], True),
    "the empty prompt": (("--prompt", "p0"), [[""]] * 3, True),
    "texts": (("--prompt", "a thing", "red disc"), [["a thing", "red disc"]] * 3, True),
    "texts that no row has": (("--prompt", "a thing"), [["a thing"]] * 3, False),
    "override": (("--override_prompt", "a thing"), [["a thing"]] * 3, True),
    "limit": (("--max_eval_samples", 2), [[text] for text in PROMPTS[:2]], True),
}


@pytest.mark.parametrize("flags, texts, has_truth", PREDICTED.values(), ids=PREDICTED)
def test_prompts_that_are_predicted(run_predict, tmp_path, flags, texts, has_truth):
    rows = run_predict(tmp_path / "out", *medvlsm(tmp_path / "data", ("p1", "p2")), *flags)
    wanted = [
        (str(tmp_path / "data" / "images" / f"{number}.png"), text)
        for number, asked in enumerate(texts)
        for text in asked
    ]
    assert [(row["image"], row["prompt"]) for row in rows] == wanted
    assert (tmp_path / "out" / "samples.png").exists() == has_truth


def test_samples_of_predictions_are_spread_and_show_each_its_own_prompt_masks_and_dice(base, tmp_path, monkeypatch):
    script, shown, out = load_example("predict"), [], tmp_path / "out"
    draw = script.contact_sheet
    monkeypatch.setattr(script, "contact_sheet", lambda samples: shown.extend(samples) or draw(samples))
    monkeypatch.setattr(script, "SAMPLES", 2)
    run_example(script, "--adapter", base, "--output", out, *THRESHOLD, *medvlsm(tmp_path / "data"))
    assert [sample.prompt for sample in shown] == [PROMPTS[0], PROMPTS[2]]
    for number, sample in zip((0, 2), shown, strict=True):
        (mask,) = (out / "masks").glob(f"*/{number}.png")
        predicted, true = _pixels(mask) > 0, masks()[number] > 0
        assert np.array_equal(sample.true_mask, true) and np.array_equal(sample.predicted_mask, predicted)
        assert sample.dice == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
        assert np.array_equal(sample.image, images()[number])


def test_an_image_with_several_phrases_is_shown_once(run_predict, tmp_path):
    flags = coco(tmp_path / "data")
    rows = run_predict(tmp_path / "out", *flags, "--negatives", 1, "--seed", 1)
    assert len(rows) == 6 and len({row["image"] for row in rows}) == 3
    assert sorted(file.name for file in (tmp_path / "out" / "overlays").iterdir()) == ["0.png", "1.png", "2.png"]
    texts = run_predict(tmp_path / "texts", *flags, "--negatives", 1, "--prompt", *PROMPTS)
    assert [row["prompt"] for row in texts] == [*PROMPTS] * 3


PROBLEMS = {
    "two sources": (("--data_dir", "{data}", "--dataset_name", "x"), "--data_dir and --dataset_name exclude one"),
    "beside an image": (("--image", "a.png", "--data_dir", "{data}"), "--data_dir is for data sets, --image a.png"),
    "idle beside an image": (("--image", "a.png", "--prompt", "x", "--max_eval_samples", 2), "--max_eval_samples is"),
    "beside a table": (("--csv", "a.csv", "--data_dir", "{data}"), "--csv a.csv names images and prompts itself"),
    "no source": (("--max_eval_samples", 2), "no data is named; give one of --data_dir"),
    "no source but a split": (("--split", "val"), "no data is named; give one of --data_dir"),
    "nothing": ((), "give --image and --prompt, or --csv, or a data set (--data_dir)"),
    "missing prompt": (("--data_dir", "{data}", "--prompt", "p7"), "0.png has no prompt p7; it has p1"),
    "unknown prompt": (("--data_dir", "{data}", "--prompt", "p01"), "--prompt p01 is unknown"),
    "both kinds": (("--data_dir", "{data}", "--prompt", "p1", "disc"), "--prompt p1 is a prompt of the rows"),
    "override": (("--data_dir", "{data}", "--prompt", "a", "--override_prompt", "b"), "--override_prompt b replaces"),
    "split": (("--data_dir", "{data}", "--split", "val"), "val.json does not exist"),
    "image_root": (("--data_dir", "{data}", "--image_root", "x"), "--image_root x needs --train_annotations"),
    "negatives": (("--data_dir", "{data}", "--negatives", 2), "--negatives does nothing with"),
    "no root": (("--test_annotations", "x.json"), "--image_root is missing"),
    "other split": (("--validation_data_dir", "{data}"), "--test_data_dir is missing: the test split needs one"),
}


@pytest.mark.parametrize("flags, problem", PROBLEMS.values(), ids=PROBLEMS)
def test_flags_of_predict_that_do_not_fit(base, tmp_path, capsys, flags, problem):
    medvlsm(tmp_path / "data")
    given = [str(flag).format(data=tmp_path / "data") for flag in flags]
    assert problem in _failure_of_predict(capsys, base, tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def _failure_of_predict(capsys, base, output, *flags):
    return failure_of(capsys, load_example("predict"), "--adapter", base, "--output", output, *flags)


EVALUATE_PROBLEMS = {
    "no data": ((), "no data is named; give one of --data_dir"),
    "config": (("--data_dir", "{data}", "--dataset_config_name", "x"), "--dataset_config_name x needs --dataset_name"),
    "root": (("--data_dir", "{data}", "--image_root", "x"), "--image_root x needs --train_annotations or its like"),
    "no root": (("--test_annotations", "x.json"), "--image_root is missing"),
    "other split": (("--validation_annotations", "a", "--image_root", "b"), "--test_annotations is missing"),
    "override": (("--data_dir", "{data}", "--prompt", "p1", "--override_prompt", "b"), "replaces --prompt p1"),
    "random and more": (("--data_dir", "{data}", "--prompt", "random", "p1"), "leave the others out"),
    "column": (("--data_dir", "{data}", "--mask_column", "x"), "--mask_column does nothing with"),
    "negatives": (("--dataset_name", "x", "--negatives", 1), "--negatives 1 needs COCO annotations"),
    "streaming": (("--data_dir", "{data}", "--streaming"), "--streaming does nothing with"),
}


@pytest.mark.parametrize("flags, problem", EVALUATE_PROBLEMS.values(), ids=EVALUATE_PROBLEMS)
def test_flags_of_evaluate_that_do_not_fit(evaluate, base, tmp_path, capsys, flags, problem):
    medvlsm(tmp_path / "data")
    given = [str(flag).format(data=tmp_path / "data") for flag in flags]
    assert problem in failure_of(capsys, evaluate, "--adapter", base, "--output", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_damaged_row_shows_before_anything_is_predicted(base, tmp_path, capsys, kind):
    flags = medvlsm(tmp_path / "data")
    (tmp_path / "data" / kind / "2.png").write_bytes(png(images()[2])[:-300])
    failure = _failure_of_predict(capsys, base, tmp_path / "out", *flags)
    assert f"{kind}/2.png" in failure and "mend or remove it" in failure
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["evaluate", "predict"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_which_rows_are_read(evaluate, base, tmp_path, monkeypatch, capsys, name, split):
    def refuse(source, split, seed):
        samples = {"train": source.max_train_samples}.get(split, source.max_eval_samples)
        raise InputError(f"{samples} samples of {split} with seed {seed}")

    script = {"evaluate": evaluate, "predict": load_example("predict")}[name]
    monkeypatch.setattr(script, "load_rows", refuse)
    flags = ("--split", split, "--seed", 7, "--max_eval_samples", 3, "--adapter", base, "--output", tmp_path / "out")
    assert (
        failure_of(capsys, script, *medvlsm(tmp_path / "data"), *flags) == f"error: 3 samples of {split} with seed 7"
    )
