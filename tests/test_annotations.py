"""The MedVLSM layout: what is read, and that whatever cannot be used is named before anything happens."""

import shutil

import pytest
from builders import read_rows, write_dataset, write_rows

from peft_vlsm.segmentation.data.annotations import read_annotations
from peft_vlsm.segmentation.errors import InputError


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data")


def test_rows_of_a_split(data):
    rows = read_annotations(data, "train")
    assert [row.index for row in rows] == list(range(6))
    assert rows[2].image == data / "images" / "train_2.png"
    assert rows[2].mask == data / "masks" / "train_2.png"
    assert rows[2].prompts["p1"] == ["disc"]
    assert len(rows[2].prompts["p3"]) == 2
    assert [len(read_annotations(data, split)) for split in ("val", "test")] == [3, 3]


def test_prompts_are_lists_in_the_order_of_their_numbers_and_without_p0(data):
    row = read_rows(data, "val")[0]
    row["prompts"] = {"p10": "last", "p2": ["b", "c"], "p0": "", "p1": "a"}
    write_rows(data, "val", [row])
    prompts = read_annotations(data, "val")[0].prompts
    assert list(prompts.items()) == [("p1", ["a"]), ("p2", ["b", "c"]), ("p10", ["last"])]


@pytest.mark.parametrize("split, folder", [("train", "train"), ("val", "train"), ("val", "val"), ("test", "test")])
def test_files_in_a_folder_per_split(data, split, folder):
    row = read_rows(data, split)[0] | {"mask_name": f"mask_1/{split}_0.png"}
    write_rows(data, split, [row])
    for kind, name in (("images", row["img_name"]), ("masks", row["mask_name"])):
        place = data / kind / folder / name
        place.parent.mkdir(parents=True)
        shutil.move(data / kind / f"{split}_0.png", place)
    found = read_annotations(data, split)[0]
    assert found.image == data / "images" / folder / f"{split}_0.png"
    assert found.mask == data / "masks" / folder / "mask_1" / f"{split}_0.png"


def test_a_byte_order_mark_is_passed_over(data):
    file = data / "anns" / "val.json"
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert file.read_bytes().startswith(b"\xef\xbb\xbf") and len(read_annotations(data, "val")) == 3


def test_names_that_repeat_between_split_folders(data):
    for split, folder in (("train", "train"), ("test", "test")):
        row = read_rows(data, split)[0]
        for kind in ("images", "masks"):
            (data / kind / folder).mkdir()
            shutil.copy(data / kind / row["img_name"], data / kind / folder / "same.png")
        write_rows(data, split, [row | {"img_name": "same.png", "mask_name": "same.png"}])
    assert read_annotations(data, "train")[0].image == data / "images" / "train" / "same.png"
    assert read_annotations(data, "test")[0].image == data / "images" / "test" / "same.png"


def test_a_data_folder_that_is_a_link_is_followed(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    assert len(read_annotations(tmp_path / "link", "train")) == 6


def _edit(**fields):
    def edit(data):
        rows = read_rows(data, "train")
        rows[1].update(fields)
        write_rows(data, "train", rows)

    return edit


def _drop(field):
    def edit(data):
        rows = read_rows(data, "train")
        del rows[1][field]
        write_rows(data, "train", rows)

    return edit


def _write(text):
    return lambda data: (data / "anns" / "train.json").write_text(text, encoding="utf-8")


def _link_out(data):
    (data.parent / "secret.png").write_bytes((data / "images" / "train_1.png").read_bytes())
    (data / "images" / "train_1.png").unlink()
    (data / "images" / "train_1.png").symlink_to(data.parent / "secret.png")


PROBLEMS = {
    "no data folder": (shutil.rmtree, ["data is not a folder", "--data_dir"]),
    "no anns": (lambda data: shutil.rmtree(data / "anns"), ["anns is not a folder"]),
    "no images": (lambda data: shutil.rmtree(data / "images"), ["images is not a folder"]),
    "no masks": (lambda data: shutil.rmtree(data / "masks"), ["masks is not a folder"]),
    "no split": (lambda data: (data / "anns" / "train.json").unlink(), ["train.json does not exist"]),
    "broken JSON": (_write('[{"img_name": '), ["train.json is not valid JSON"]),
    "not UTF-8": (
        lambda data: (data / "anns" / "train.json").write_bytes(b'["\xff"]'),
        ["train.json is not valid JSON"],
    ),
    "nested too deeply": (_write("[" * 100_000), ["train.json is not valid JSON"]),
    "not a list": (_write('{"rows": []}'), ["train.json must hold a list", "dict"]),
    "empty list": (_write("[]"), ["train.json holds no rows"]),
    "row is no object": (_write('["row"]'), ["train.json, row 0", "must be an object"]),
    "no img_name": (_drop("img_name"), ["train.json, row 1", "no img_name"]),
    "no mask_name": (_drop("mask_name"), ["row 1", "no mask_name"]),
    "no prompts": (_drop("prompts"), ["row 1", "no prompts"]),
    "name is a number": (_edit(img_name=3), ["row 1", "img_name must be a file name", "3"]),
    "name is empty": (_edit(mask_name=""), ["row 1", "mask_name must be a file name"]),
    "missing image": (_edit(img_name="gone.png"), ["row 1", "'gone.png' does not exist", "images/train/gone.png"]),
    "missing mask": (_edit(mask_name="gone.png"), ["row 1", "'gone.png' does not exist", "masks/gone.png"]),
    "name is a folder": (_edit(img_name="."), ["row 1", "'.' does not exist"]),
    "name is too long": (_edit(img_name="a" * 5000), ["row 1", "does not exist"]),
    "name holds a null": (_edit(img_name="a\0b"), ["row 1", "does not exist"]),
    "parent folder": (_edit(img_name="../anns/train.json"), ["row 1", "leaves the data folder"]),
    "absolute path": (_edit(mask_name="/etc/hostname"), ["row 1", "'/etc/hostname' leaves the data folder"]),
    "link that leaves": (_link_out, ["row 1", "is a link that leaves the data folder", "secret.png"]),
    "prompts are a list": (_edit(prompts=["disc"]), ["row 1", "prompts must be an object"]),
    "unknown prompt key": (_edit(prompts={"p1": "disc", "q2": "disc"}), ["row 1", "unknown key 'q2'"]),
    "prompt key without number": (_edit(prompts={"p": "disc"}), ["row 1", "unknown key 'p'"]),
    "empty prompt": (_edit(prompts={"p1": " "}), ["row 1", "empty prompt", "p1"]),
    "empty list of prompts": (_edit(prompts={"p1": []}), ["row 1", "empty prompt", "p1"]),
    "empty prompt in a list": (_edit(prompts={"p1": ["disc", ""]}), ["row 1", "empty prompt", "p1"]),
    "prompt is a number": (_edit(prompts={"p1": 3}), ["row 1", "not text", "p1 is 3"]),
    "prompt is no text": (_edit(prompts={"p1": "\ud800"}), ["row 1", "not text", "p1"]),
    "nothing but p0": (_edit(prompts={"p0": ""}), ["row 1", "no prompt but p0"]),
    "p0 with text": (_edit(prompts={"p0": "disc", "p1": "disc"}), ["row 1", "'disc' as p0"]),
}


@pytest.mark.parametrize("spoil, parts", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_named(data, spoil, parts):
    spoil(data)
    with pytest.raises(InputError) as error:
        read_annotations(data, "train")
    for part in parts:
        assert part in str(error.value)


def test_rows_that_repeat_another_are_kept_and_counted(data, caplog):
    rows = read_rows(data, "train")
    write_rows(data, "train", [*rows, rows[0], rows[1] | {"prompts": {"p1": "another"}}])
    assert len(read_annotations(data, "train")) == 8
    assert "train.json: 1 rows repeat another one" in caplog.text


def test_further_rows_with_problems_are_counted(data):
    rows = read_rows(data, "train")
    for row in rows[2:]:
        row["img_name"] = "gone.png"
    write_rows(data, "train", rows)
    with pytest.raises(InputError, match=r"row 2 .*\(3 more rows have problems\)"):
        read_annotations(data, "train")
