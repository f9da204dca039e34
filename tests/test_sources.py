"""Flags and folders name the source; image folders and COCO annotations are read, and their problems are named."""

import json
import logging
import pickle
import shutil
import unicodedata

import numpy as np
import pycocotools.mask as coco_masks
import pytest
from builders import write_dataset
from PIL import Image
from source_data import (
    HEIGHT,
    SQUARE,
    WIDTH,
    coco_content,
    png,
    read_metadata,
    square,
    write_coco,
    write_imagefolder,
    write_metadata,
)

from peft_vlsm.segmentation.arguments import parse_arguments
from peft_vlsm.segmentation.data.augmentation import Augmentation
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.arguments import DataArguments, SourceArguments, each_source
from peft_vlsm.segmentation.sources.coco import read_coco
from peft_vlsm.segmentation.sources.imagefolder import read_imagefolder
from peft_vlsm.segmentation.sources.open import find_source, has_split, load_rows
from peft_vlsm.segmentation.sources.rows import check_rows


def _flags(*flags):
    return parse_arguments(DataArguments, [str(flag) for flag in flags])


FLAG_PROBLEMS = {
    "nothing": ([], "no data is named; give one of --data_dir"),
    "two sources": (["--data_dir", "d", "--dataset_name", "n"], "--data_dir and --dataset_name exclude one another"),
    "COCO without images": (["--train_annotations", "a"], "--image_root is missing"),
    "images without COCO": (["--data_dir", "d", "--image_root", "i"], "--image_root i needs --train_annotations"),
    "configuration alone": (["--data_dir", "d", "--dataset_config_name", "c"], "needs --dataset_name"),
    "streamed COCO": (
        ["--train_annotations", "a", "--image_root", "i", "--streaming"],
        "--streaming True does",
    ),
    "negatives of a table": (["--dataset_name", "n", "--negatives", "2"], "--negatives 2 needs COCO"),
    "fewer than no negatives": (["--data_dir", "d", "--negatives", "-1"], "--negatives -1 must not be negative"),
    "no samples": (["--data_dir", "d", "--max_eval_samples", "0"], "--max_eval_samples 0 must be at least 1"),
    "unknown prompt": (["--data_dir", "d", "--prompt", "q1"], "--prompt q1 is unknown"),
    "empty override": (["--data_dir", "d", "--override_prompt", " "], "--override_prompt   is empty"),
    "two choices": (["--data_dir", "d", "--override_prompt", "x", "--prompt", "p1"], "replaces --prompt p1"),
    "negatives renamed": (["--data_dir", "d", "--override_prompt", "x", "--negatives", "1"], "would name the --negat"),
    "rotation": (
        ["--data_dir", "d", "--augment_rotation", "200"],
        "200.0 must lie between 0 and 180",
    ),
    "scale is no number": (["--data_dir", "d", "--augment_scale", "nan"], "--augment_scale nan must lie between"),
}


@pytest.mark.parametrize("flags, problem", FLAG_PROBLEMS.values(), ids=FLAG_PROBLEMS)
def test_flags_that_do_not_fit_are_named(flags, problem):
    with pytest.raises(InputError) as error:
        _flags(*flags)
    assert problem in str(error.value)


def test_augmentation_is_off_unless_asked_for():
    assert _flags("--data_dir", "d").augmentation() is None
    args = _flags("--data_dir", "d", "--augment_flip", "--augment_colour", "0.2")
    assert args.augmentation() == Augmentation(flip=True, colour=0.2)


def test_the_medvlsm_layout(tmp_path):
    data = write_dataset(tmp_path / "data")
    args = _flags("--data_dir", data, "--max_train_samples", "4", "--max_eval_samples", "2")
    assert [len(load_rows(args, split)) for split in ("train", "val", "test")] == [4, 2, 2]
    row = load_rows(args, "val")[1]
    assert row.index == 1 and row.name == str(data / "images" / "val_1.png")
    row.check()
    image, mask = row.open()
    assert image.size == mask.shape[::-1] and mask.dtype == bool


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_an_image_folder_with_a_folder_per_split(tmp_path, validation):
    write_imagefolder(tmp_path / "train", 4)
    write_imagefolder(tmp_path / validation, 2)
    args = _flags("--data_dir", tmp_path)
    assert [len(load_rows(args, split)) for split in ("train", "val")] == [4, 2]
    assert [row.prompts for row in load_rows(args, "val")] == [{"p1": ["square"]}, {"p1": ["a square", "one square"]}]
    assert not has_split(args, "test")
    with pytest.raises(InputError, match="has no test split"):
        load_rows(args, "test")


def test_an_image_folder_for_each_split_by_its_flag(tmp_path):
    train, test = write_imagefolder(tmp_path / "a"), write_imagefolder(tmp_path / "b", 1)
    args = _flags("--train_data_dir", train, "--test_data_dir", test)
    assert [len(load_rows(args, split)) for split in ("train", "test")] == [3, 1]
    with pytest.raises(InputError, match="--validation_data_dir is missing"):
        load_rows(args, "val")


def test_unicode_names(tmp_path):
    folder = write_imagefolder(tmp_path / "Darm-Übersicht 図")
    (folder / "0.png").rename(folder / "größe 図.png")
    lines = read_metadata(folder)
    lines[0] |= {"file_name": "größe 図.png", "prompt": "ポリープ"}
    write_metadata(folder, lines)
    rows = read_imagefolder(folder)
    check_rows(rows)
    assert rows[0].name.endswith("größe 図.png") and rows[0].prompts == {"p1": ["ポリープ"]}


@pytest.mark.parametrize("on_disk, in_file", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_that_look_alike_are_the_same(tmp_path, on_disk, in_file):
    folder = write_imagefolder(tmp_path / "train")
    (folder / "0.png").rename(folder / unicodedata.normalize(on_disk, "größe é.png"))
    lines = read_metadata(folder)
    lines[0]["file_name"] = unicodedata.normalize(in_file, "größe é.png")
    write_metadata(folder, lines)
    check_rows(read_imagefolder(folder))


def test_rows_that_repeat_another_are_kept_and_counted(tmp_path, caplog):
    folder = write_imagefolder(tmp_path / "train")
    lines = read_metadata(folder)
    write_metadata(folder, [*lines, lines[1], lines[1], lines[0] | {"prompt": "another"}])
    with caplog.at_level(logging.WARNING):
        assert len(read_imagefolder(folder)) == 6
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'metadata.jsonl'}: 2 rows repeat another one (the same image, mask and prompts); they are kept"
    ]


LINE_PROBLEMS = {
    "no such file": ({"file_name": "gone.png"}, "'gone.png' does not exist"),
    "leaves the folder": ({"mask_file_name": "../train/0.png"}, "leaves the data folder"),
    "absolute": ({"file_name": "/etc/hostname"}, "leaves the data folder"),
    "name is no text": ({"file_name": 3}, "file_name must be a file name, it is 3"),
    "empty prompt": ({"prompt": " "}, "prompt must be a text or a list of texts"),
    "nothing that shows": ({"prompt": "\u200b\ufeff"}, "prompt must be a text or a list of texts"),
    "no prompts": ({"prompt": []}, "prompt must be a text or a list of texts"),
    "prompt is a number": ({"prompt": 7}, "it is 7"),
    "prompt is null": ({"prompt": None}, "it is None"),
    "a number in a list": ({"prompt": ["a", 1]}, "it is ['a', 1]"),
    "half a surrogate pair": ({"prompt": "\ud800"}, "must be a text"),
}


@pytest.mark.parametrize("change, problem", LINE_PROBLEMS.values(), ids=LINE_PROBLEMS)
def test_a_line_with_a_problem_is_named(tmp_path, change, problem):
    folder = write_imagefolder(tmp_path / "train")
    lines = read_metadata(folder)
    lines[1] |= change
    write_metadata(folder, lines)
    with pytest.raises(InputError) as error:
        read_imagefolder(folder)
    assert "metadata.jsonl, line 2: " in str(error.value) and problem in str(error.value)


METADATA = {
    "no file": (None, "metadata.jsonl does not exist"),
    "empty": (b"\n\n", "holds no rows"),
    "no object": (b"[1]", "line 1: must be an object with file_name, mask_file_name, prompt, it is a JSON list"),
    "broken": (b'{"file_name"', "line 1: is not valid JSON"),
    "not UTF-8": (b'{"file_name": "\xff"}', "it is not UTF-8"),
    "no mask": (b'{"file_name": "0.png", "prompt": "a"}', "line 1: has no mask_file_name"),
    "all of them": (b"1\n2\n3\n", "(2 more lines have problems)"),
}


@pytest.mark.parametrize("content, problem", METADATA.values(), ids=METADATA)
def test_a_metadata_file_with_a_problem(tmp_path, content, problem):
    folder = write_imagefolder(tmp_path / "train")
    (folder / "metadata.jsonl").unlink() if content is None else (folder / "metadata.jsonl").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_imagefolder(folder)
    assert problem in str(error.value)


def test_a_coco_folder(tmp_path):
    args = _flags("--data_dir", write_coco(tmp_path))
    rows = load_rows(args, "train")
    check_rows(rows)
    assert [(row.prompts["p1"][0], row.index) for row in rows] == [("square", 0), ("disc", 1), ("square", 2)]
    masks = [row.open()[1] for row in rows]
    both = square() > 0
    both[0:2, 8:10] = True
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[:, 0] = True
    for mask, expected in zip(masks, (both, crowd, square() > 0), strict=True):
        assert np.array_equal(mask, expected)
    assert len(load_rows(args, "val")) == 3 and not has_split(args, "test")


def test_coco_by_its_flags_and_by_pickle(tmp_path):
    data = write_coco(tmp_path)
    file = data / "annotations" / "instances_train2017.json"
    args = _flags("--validation_annotations", file, "--image_root", data / "images")
    rows = pickle.loads(pickle.dumps(load_rows(args, "val")))
    assert rows[0].open()[1].sum() == 24
    with pytest.raises(InputError, match="--train_annotations is missing"):
        load_rows(args, "train")


def _beside_the_annotations(data):
    """As COCO itself is packed: train2017/ and annotations/."""
    shutil.move(data / "images", data / "train2017")
    shutil.copytree(data / "train2017", data / "val2017")


def _in_a_folder_of_the_split(data):
    (data / "images" / "train2017").mkdir()
    for image in (data / "images").glob("*.png"):
        image.rename(data / "images" / "train2017" / image.name)
    shutil.copytree(data / "images" / "train2017", data / "images" / "val2017")


def _as_roboflow_exports(data):
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(data / "images", data / folder)
        shutil.move(data / "annotations" / f"instances_{split}2017.json", data / folder / "_annotations.coco.json")
    for name in ("images", "annotations"):
        shutil.rmtree(data / name)


LAYOUTS = (_beside_the_annotations, _in_a_folder_of_the_split, _as_roboflow_exports)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("pack", LAYOUTS)
def test_the_folders_that_annotation_tools_write(tmp_path, pack, split):
    data = write_coco(tmp_path)
    pack(data)
    rows = load_rows(_flags("--data_dir", data), split)
    check_rows(rows)
    assert [row.open()[1].any() for row in rows] == [True] * 3
    file = find_source(_flags("--data_dir", data), split).files[0]
    root = data / "images" if (data / "images").is_dir() else data
    assert [row.image for row in read_coco(file, root)] == [row.image for row in rows]


def test_categories_of_one_name_are_one_phrase(tmp_path):
    content = coco_content()
    content["categories"] = [{"id": 0, "name": "square"}, *content["categories"][:2]]
    content["categories"][2]["name"] = "square"
    rows = load_rows(_flags("--data_dir", write_coco(tmp_path, content), "--negatives", "5"), "train")
    assert [row.prompts["p1"] for row in rows] == [["square"]] * 2
    assert rows[0].open()[1].sum() == 24 + HEIGHT


def test_compressed_and_plain_run_lengths_are_the_same_mask(tmp_path):
    compressed = coco_masks.encode(np.asfortranarray(square() > 0).astype(np.uint8))
    counts = [23, 5, 5, 5, 5, 5, 5, 5, 62]
    content = coco_content()
    for annotation, code in zip(content["annotations"][::3], (compressed["counts"].decode(), counts), strict=True):
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": code}
    content["annotations"] = content["annotations"][::3]
    for row in load_rows(_flags("--data_dir", write_coco(tmp_path, content)), "train"):
        assert np.array_equal(row.open()[1], square() > 0)


def test_negatives_are_phrases_that_the_image_lacks(tmp_path):
    data = write_coco(tmp_path, coco_content(annotations=coco_content()["annotations"][:3]))
    file, root = data / "annotations" / "instances_train2017.json", data / "images"

    def phrases(negatives, seed):
        rows = read_coco(file, root, negatives, seed)
        assert [row.index for row in rows] == list(range(len(rows)))
        assert all(row.open()[1].any() == bool(row.regions) for row in rows)
        return [(row.image.name, row.prompts["p1"][0], bool(row.regions)) for row in rows]

    assert phrases(0, 0) == [("7.png", "square", True), ("7.png", "disc", True)]
    one = phrases(1, 0)
    assert [row[0] for row in one] == ["7.png"] * 3 + ["9.png"]
    assert one[2][1] in ("star", "cross") and not one[2][2] and not one[3][2]
    assert one == phrases(1, 0) and len({tuple(phrases(1, seed)) for seed in range(20)}) > 4
    assert len(phrases(99, 0)) == 8


def test_negatives_follow_from_the_seed_and_the_image(tmp_path):
    image = coco_content()["images"][0]
    content = coco_content(images=[image | {"id": key} for key in range(12)], annotations=[])
    args = _flags("--data_dir", write_coco(tmp_path, content), "--negatives", "1")

    def phrases(seed):
        return tuple(row.prompts["p1"][0] for row in load_rows(args, "train", seed))

    assert len(set(phrases(3))) > 1 and phrases(3) == phrases(3) != phrases(4)
    args.negatives = 4
    for seed in range(3):
        assert phrases(seed) == ("square", "disc", "star", "cross") * 12, "in the order of their ids"


def _annotation(**fields):
    return lambda content: content["annotations"][1].update(fields)


def _rle(**fields):
    return _annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 10, 110], **fields})


COCO_PROBLEMS = {
    "no categories": (lambda c: c.pop("categories"), "has no list of objects categories"),
    "images are no objects": (lambda c: c.update(images=[1]), "has no list of objects images"),
    "no annotations": (lambda c: c.update(annotations=[]), "gives no rows"),
    "image without an id": (lambda c: c["images"][1].pop("id"), "image without an id at place 1: id must be a whole"),
    "ids repeat": (lambda c: c["images"][1].update(id=7), "image 7: has the id of another"),
    "no width": (lambda c: c["images"][1].pop("width"), "image 9: width must be a whole number of at least 1"),
    "image gone": (lambda c: c["images"][1].update(file_name="x.png"), "image 9: file_name 'x.png' does not exist"),
    "image outside": (lambda c: c["images"][1].update(file_name="../a.png"), "leaves the data folder"),
    "empty phrase": (lambda c: c["categories"][0].update(name=" "), "category 1: name must be a text"),
    "unknown image": (_annotation(image_id=8), "annotation 2: image_id 8 is not in the file"),
    "unknown category": (_annotation(category_id=8), "annotation 2: category_id 8 is not in the file"),
    "no mask": (_annotation(segmentation=[]), "annotation 2: has no segmentation"),
    "two corners": (_annotation(segmentation=[[1, 1, 2, 2]]), "at least three x, y in turn"),
    "an odd number": (_annotation(segmentation=[[*SQUARE, 1]]), "at least three x, y in turn"),
    "flat polygon": (_annotation(segmentation=SQUARE), "must hold polygons"),
    "not finite": (_annotation(segmentation=[[*SQUARE, 1, float("nan")]]), "has the coordinate nan"),
    "far outside": (_annotation(segmentation=[[*SQUARE, 1e9, 1]]), "has the coordinate 1000000000.0"),
    "right of it": (_annotation(segmentation=[[*SQUARE, 2 * WIDTH + 1, 1]]), "has the coordinate 25, which is not in"),
    "below it": (_annotation(segmentation=[[*SQUARE, 1, 2 * HEIGHT + 1]]), "has the coordinate 21, which is not in"),
    "above it": (_annotation(segmentation=[[*SQUARE, 1, -HEIGHT - 1]]), "has the coordinate -11, which is not in"),
    "corner is text": (_annotation(segmentation=[[*SQUARE, "1", 1]]), "has the coordinate '1'"),
    "size of another image": (_rle(size=[3, 3]), "has the size [3, 3]"),
    "runs too short": (_rle(counts=[0, 10]), "no run lengths of the whole image"),
    "runs below 0": (_rle(counts=[0, 130, -10]), "no run lengths of the whole image"),
    "runs are text": (_rle(counts=["0", 120]), "no run lengths of the whole image"),
    "compressed, too short": (_rle(counts="0"), "no run lengths of the whole image"),
    "compressed, broken off": (_rle(counts="o"), "no run lengths of the whole image"),
    "compressed, not ASCII": (_rle(counts="é"), "no run lengths of the whole image"),
}


@pytest.mark.parametrize("spoil, problem", COCO_PROBLEMS.values(), ids=COCO_PROBLEMS)
def test_a_problem_of_coco_annotations_is_named(tmp_path, spoil, problem):
    content = coco_content()
    spoil(content)
    write_coco(tmp_path, content)
    with pytest.raises(InputError) as error:
        load_rows(_flags("--data_dir", tmp_path), "train")
    assert "instances_train2017.json" in str(error.value) and problem in str(error.value)


def test_a_polygon_may_reach_a_little_out_of_the_image(tmp_path):
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[-WIDTH, 3, 2 * WIDTH, 3, 2 * WIDTH, 2 * HEIGHT, -WIDTH, 2 * HEIGHT]]
    mask = load_rows(_flags("--data_dir", write_coco(tmp_path, content)), "train")[0].open()[1]
    assert mask[3:].all() and not mask[2, :8].any()


def test_an_image_of_another_size_than_annotated(tmp_path):
    data = write_coco(tmp_path)
    (data / "images" / "9.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    rows = load_rows(_flags("--data_dir", data), "train")
    for call in (lambda: check_rows(rows), rows[2].open):
        with pytest.raises(InputError, match="9.png is 4x4, its annotations say 12x10"):
            call()


def test_further_rows_with_damaged_images_are_counted(tmp_path):
    folder = write_imagefolder(tmp_path / "train")
    for name in ("1.png", "2_mask.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"1.png is not an image.* empty file \(1 more rows have problems\)"):
        check_rows(read_imagefolder(folder))


def test_pycocotools_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    rows = load_rows(_flags("--data_dir", write_coco(tmp_path)), "train")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(InputError, match="pip install"):
        rows[0].open()


def _only(name):
    def write(folder):
        (folder / name).mkdir(parents=True)
        return folder

    return write


def _two_kinds_of_shards(folder):
    (folder / "train").mkdir(parents=True)
    for name in ("0.parquet", "1.tar"):
        (folder / "train" / name).touch()
    return folder


FOLDER_PROBLEMS = {
    "nothing": (lambda folder: folder, [], "is not a folder"),
    "an empty folder": (_only(""), [], "holds none of anns/"),
    "half of MedVLSM": (_only("masks"), [], "anns is not a folder"),
    "an empty split": (_only("train"), [], "train holds none of metadata.jsonl, _annotations.coco.json, Parquet"),
    "a table of text": (_only("train/metadata.csv"), [], "save metadata.csv as metadata.jsonl"),
    "two kinds of shards": (_two_kinds_of_shards, [], "holds shards of both .parquet and .tar; keep one kind"),
    "streamed files": (write_dataset, ["--streaming"], "--streaming does nothing with"),
    "columns of files": (write_dataset, ["--image_column", "i"], "--image_column does nothing with"),
    "negatives of files": (write_dataset, ["--negatives", "1"], "--negatives does nothing with"),
}


@pytest.mark.parametrize("write, flags, problem", FOLDER_PROBLEMS.values(), ids=FOLDER_PROBLEMS)
def test_a_folder_that_cannot_be_used_is_named(tmp_path, write, flags, problem):
    folder = write(tmp_path / "data")
    with pytest.raises(InputError) as error:
        load_rows(_flags("--data_dir", folder, *flags), "train")
    assert str(folder) in str(error.value) and problem in str(error.value)


@pytest.mark.parametrize("locked", ["data", "data/train"])
def test_a_folder_of_someone_else(tmp_path, monkeypatch, locked):
    write_imagefolder(tmp_path / "data" / "train")
    # Root, as which tests may run, reads every folder.
    monkeypatch.setattr("os.access", lambda folder, mode: folder != tmp_path / locked)
    with pytest.raises(InputError, match=f"{locked} cannot be read: permission denied"):
        load_rows(_flags("--data_dir", tmp_path / "data"), "train")


def test_two_files_of_one_coco_split(tmp_path):
    data = write_coco(tmp_path)
    shutil.copy(data / "annotations" / "instances_train2017.json", data / "annotations" / "instances_train2014.json")
    with pytest.raises(InputError, match="are both train"):
        find_source(_flags("--data_dir", data), "train")


def test_the_prompt_of_an_image_folder_may_have_another_name(tmp_path):
    folder = write_imagefolder(tmp_path / "train")
    write_metadata(folder, [line | {"caption": "this"} for line in read_metadata(folder)])
    rows = load_rows(_flags("--data_dir", tmp_path, "--prompt_column", "caption"), "train")
    assert rows[0].prompts == {"p1": ["this"]}


def test_a_photograph_lying_on_its_side_is_annotated_upright(tmp_path):
    data = write_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(data / "images" / "7.png", exif=exif)
    image, mask = load_rows(_flags("--data_dir", data), "train")[0].open()
    assert image.size == (WIDTH, HEIGHT) == mask.shape[::-1]


def test_so_many_samples_of_every_split_are_evaluated():
    for args in each_source(SourceArguments(max_eval_samples=2), ["a", "b"], ["c"]):
        assert args.max_eval_samples == args.max_train_samples == 2


def test_a_line_of_metadata_ends_at_a_line_feed_alone(tmp_path):
    """JSON may hold other signs that end a line in Unicode."""
    folder = write_imagefolder(tmp_path / "train")
    lines = [line | {"prompt": "one\u2028square"} for line in read_metadata(folder)]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert [row.prompts["p1"] for row in read_imagefolder(folder)] == [["one\u2028square"]] * 3
