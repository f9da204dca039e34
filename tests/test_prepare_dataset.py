"""The written data set is right, sound as an experiment, the same each time, and appears whole or not at all."""

import importlib.metadata
import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from builders import failure_of, load_example, run_example
from PIL import Image

from peft_vlsm.segmentation.data.annotations import SPLITS, read_annotations

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "prepare_dataset.py"
FIELDS = {"bbox", "cat", "segment_id", "img_name", "mask_name", "sentences", "sentences_num", "prompts"}

prepare_dataset = load_example("prepare_dataset")


def run(*arguments: object) -> None:
    run_example(prepare_dataset, *arguments)


def fail(capsys, *arguments: object) -> str:
    return failure_of(capsys, prepare_dataset, *arguments)


def read_mask(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "brain"
    run("brain-mri", out)
    return out


@pytest.fixture(scope="module")
def rows(brain):
    return {split: json.loads((brain / "anns" / f"{split}.json").read_text()) for split in SPLITS}


def test_there_is_enough_of_each_class_to_train_and_to_test(rows):
    for split, minimum in (("train", 120), ("val", 35), ("test", 35)):
        counts = np.bincount([row["cat"] for row in rows[split]], minlength=3)
        assert counts.shape == (3,) and counts.min() >= minimum, f"{split}: {counts}"


def test_fine_tuning_reads_every_row(brain, rows):
    for split in SPLITS:
        read = read_annotations(brain, split)
        assert [row.mask.name for row in read] == [row["mask_name"] for row in rows[split]]


def test_rows_have_the_fields_and_forms_of_medvlsm(rows):
    for split in rows.values():
        for number, row in enumerate(split):
            assert set(row) == FIELDS
            assert row["sentences"] == [{"idx": 0, "sent_id": number, "sent": ""}] and row["sentences_num"] == 1
            assert list(row["prompts"]) == [f"p{i}" for i in range(7)] and row["prompts"]["p0"] == ""
            for key in list(row["prompts"])[1:]:
                wordings = row["prompts"][key]
                assert len(wordings) == len(set(wordings)) > 1 and all(
                    wording.strip() == wording for wording in wordings
                )


def test_prompts_fit_a_small_text_encoder_and_vary(rows):
    longest = [prompt for row in rows["train"] for prompt in row["prompts"]["p6"]]
    assert max(len(prompt.replace(",", " ,").split()) for prompt in longest) <= 22
    assert len(set(longest)) >= 150
    for row in rows["train"]:
        assert row["prompts"]["p1"][0] in ("grey matter", "white matter", "brain")[row["cat"]]
        assert row["prompts"]["p6"][0].endswith(" of the image")


def test_masks_fit_their_images_and_boxes(brain, rows):
    every = [row for split in rows.values() for row in split]
    assert {path.name for path in (brain / "images").iterdir()} == {row["img_name"] for row in every}
    assert sorted(path.name for path in (brain / "masks").iterdir()) == sorted(row["mask_name"] for row in every)
    for row in every:
        image, mask = read_mask(brain / "images" / row["img_name"]), read_mask(brain / "masks" / row["mask_name"])
        assert image.shape == mask.shape and image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255} and (mask > 0).mean() >= 0.01
        y, x = np.nonzero(mask)
        assert row["bbox"] == [x.min(), y.min(), x.max(), y.max()]
        # The mask lies on the brain, which the template shows on black.
        assert image[mask > 0].min() > 0


def test_tissues_are_disjoint_parts_of_the_brain_and_white_is_brighter(brain):
    image = read_mask(brain / "images" / "axial_079.png")
    grey, white, whole = (
        read_mask(brain / "masks" / f"axial_079_{tissue}.png") > 0
        for tissue in ("grey_matter", "white_matter", "brain")
    )
    assert not (grey & white).any() and not ((grey | white) & ~whole).any()
    assert (grey | white).sum() > 0.8 * whole.sum()
    assert image[white].mean() > image[grey].mean() + 25


def test_slices_are_upright(brain):
    axial = read_mask(brain / "masks" / "axial_038_brain.png") > 0
    top, bottom = np.flatnonzero(axial.any(axis=1))[[0, -1]]
    assert not axial[top : top + 20, 98].any() and axial[bottom - 20, 98], "temporal poles in front, cerebellum behind"
    coronal = read_mask(brain / "masks" / "coronal_107_brain.png") > 0
    assert coronal[np.flatnonzero(coronal.any(axis=1))[-1], 98], "the brain stem is the lowest part"
    sagittal = read_mask(brain / "masks" / "sagittal_098_brain.png") > 0
    bottom = np.flatnonzero(sagittal.any(axis=1))[-1]
    assert np.flatnonzero(sagittal[bottom]).mean() > sagittal.shape[1] / 2, (
        "the brain stem is behind, the face looks left"
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_no_slice_has_a_neighbour_in_another_split(rows, plane):
    slices = {
        split: np.array([int(row["img_name"][-7:-4]) for row in rows[split] if row["img_name"].startswith(plane)])
        for split in rows
    }
    for first, second in combinations(slices, 2):
        others = slices[second]
        assert np.abs(slices[first][:, None] - others).min() >= 5
        if plane == "sagittal":
            # The template's halves mirror each other: a slice's mirror image lies at 196 - index.
            assert np.abs(196 - slices[first][:, None] - others).min() >= 5


def test_no_image_occurs_twice(brain):
    images = [path.read_bytes() for path in (brain / "images").iterdir()]
    assert len(set(images)) == len(images)


def test_notice_is_complete(brain):
    notice = (brain / "LICENSE").read_text()
    words = " ".join(notice.split())
    assert (
        "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute"
        in words
    )
    assert "provided that the above copyright notice appear in all copies" in words
    (path,) = [path for path in importlib.metadata.files("nilearn") if path.name == "LICENSE"]
    assert path.read_text() in notice


def test_command_line_gives_the_same_bytes_again(brain, tmp_path):
    command = [sys.executable, str(SCRIPT), "brain-mri", "again"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("again: train ") and "100%" in result.stderr
    again = tmp_path / "again"
    files = {path.relative_to(brain) for path in brain.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert all((brain / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_check_counts_and_writes_nothing(capsys, monkeypatch, tmp_path, rows):
    monkeypatch.chdir(tmp_path)
    run("brain-mri", "--check")
    every = [row for split in rows.values() for row in split]
    counts = f"images {len({row['img_name'] for row in every})}, rows {len(every)}"
    assert f"brain-mri: {counts}, empty masks 0, duplicates 0 " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "NAME"),
        (("brain-mri",), "OUT"),
        (("brain", "OUT"), "brain-mri"),
        (("brain-mri", "RAW", "OUT"), "unrecognized arguments: OUT"),
    ],
)
def test_wrong_command_line_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fail(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused(capsys, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert f"{tmp_path} exists already" in fail(capsys, "brain-mri", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_missing_nilearn_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    assert 'pip install "peft-vlsm[train]"' in fail(capsys, "brain-mri", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def list_photographs(raw: Path) -> list:
    """A data set of colour images whose files the user brings: RAW/NAME.npy and a square to find in each."""
    mask = np.zeros((60, 80), dtype=bool)
    mask[5:15, 5:15] = True
    masks = {"good": mask, "empty": ~mask & mask, "small": mask[:30]}
    return [
        prepare_dataset.Sample(
            split="train",
            image_name=f"{path.stem}.png",
            mask_name=f"{path.stem}.png",
            category=0,
            class_names=("polyp",),
            load=lambda path=path: (np.load(path), masks[path.stem]),
        )
        for path in sorted(raw.iterdir())
    ]


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    row = prepare_dataset.Dataset(list_photographs, needs_raw=True, notice=SCRIPT, description="for this test")
    monkeypatch.setitem(prepare_dataset.DATASETS, "photographs", row)
    raw = tmp_path / "raw"
    raw.mkdir()
    np.save(raw / "good.npy", np.full((60, 80, 3), (215, 35, 35), dtype=np.uint8))
    return raw


def test_a_further_data_set_reads_raw(photographs, tmp_path):
    out = tmp_path / "out"
    run("photographs", photographs, out)
    (row,) = json.loads((out / "anns" / "train.json").read_text())
    assert row["prompts"]["p6"] == "one small red square polyp, located in top left of the image"
    assert row["bbox"] == [5, 5, 14, 14]
    assert json.loads((out / "anns" / "test.json").read_text()) == []
    assert read_mask(out / "images" / "good.png").shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("name", "message"), [("empty", "empty.png: mask is empty"), ("small", "small.png: mask is bool")]
)
def test_bad_sample_is_named_and_nothing_is_written(capsys, photographs, tmp_path, name, message):
    np.save(photographs / f"{name}.npy", np.zeros((60, 80, 3), dtype=np.uint8))
    assert message in fail(capsys, "photographs", photographs, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_missing_raw_is_named(capsys, photographs, tmp_path):
    assert "RAW nowhere is not a folder" in failure_of(
        capsys, prepare_dataset, "photographs", "nowhere", tmp_path / "out"
    )
