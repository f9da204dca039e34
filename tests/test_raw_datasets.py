"""Every publisher's folder, built in miniature, becomes a data set of the right rows, prompts, splits and masks."""

import json
import sys
from collections import defaultdict
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from builders import EXAMPLES, failure_of, load_example, run_example
from PIL import Image
from raw_layouts import (
    LEFT,
    RIGHT,
    SIZE,
    STRUCTURES,
    VARIANTS,
    WRITERS,
    discs,
    picture,
    save,
    write_camus,
    write_chexlocalize,
    write_clinicdb,
    write_volume,
)

from peft_vlsm.segmentation.data.annotations import SPLITS, read_annotations
from peft_vlsm.segmentation.data.images import open_pair

prepare_dataset = load_example("prepare_dataset")
LAST_PROMPT = {"camus": 7, "busi": 6, "chexlocalize": 6}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """RAW and OUT of each layout, written once."""
    folders = {}
    for name, write in VARIANTS.items():
        root = tmp_path_factory.mktemp("data set")
        (root / "raw").mkdir()
        write(root / "raw")
        run_example(prepare_dataset, name.split()[0], root / "raw", root / "out")
        folders[name] = (root / "raw", root / "out")
    return folders


@pytest.fixture(params=VARIANTS)
def layout(request):
    return request.param


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def rows_of(out: Path) -> dict[str, list[dict]]:
    return {split: json.loads((out / "anns" / f"{split}.json").read_text()) for split in SPLITS}


COUNTS = {
    "kvasir": (10, 1, 1),
    "bkai": None,
    "clinicdb": (10, 1, 1),
    "isic2016": (10, 1, 3),
    "dfu": (11, 3, 1),
    "camus": (36, 12, 24),
    "busi": None,
    "chexlocalize": None,
    "dfu (DFUC2022)": (10, 1, 1),
    "camus (first release)": (36, 12, 12),
}


def test_fine_tuning_reads_every_row(prepared, layout):
    out = prepared[layout][1]
    rows = rows_of(out)
    for split in SPLITS:
        read = read_annotations(out, split)
        assert len(read) == len(rows[split]) > 0
        for row in read:
            image, mask = open_pair(row.image, row.mask)
            assert image.size == SIZE and mask.shape == SIZE[::-1]
            assert set(np.unique(pixels_of(row.mask))) <= {0, 255}
    if COUNTS[layout]:
        assert tuple(len(rows[split]) for split in SPLITS) == COUNTS[layout]


def test_rows_have_the_fields_and_forms_of_medvlsm(prepared, layout):
    name = layout.split()[0]
    for split in rows_of(prepared[layout][1]).values():
        for number, row in enumerate(split):
            assert row["sentences"] == [{"idx": 0, "sent_id": number, "sent": ""}] and row["sentences_num"] == 1
            assert isinstance(row["cat"], int) and len(row["bbox"]) == 4
            assert row["segment_id"] == Path(row["img_name"]).stem and "/" not in row["img_name"]
            assert list(row["prompts"]) == [f"p{i}" for i in range(LAST_PROMPT.get(name, 9) + 1)]
            assert row["prompts"]["p0"] == ""
            for key in list(row["prompts"])[1:]:
                texts = row["prompts"][key]
                texts = texts if isinstance(texts, list) else [texts]
                assert len(texts) == len(set(texts)) and all(text.strip() == text != "" for text in texts)


def test_no_image_and_no_patient_lies_on_two_sides(prepared, layout):
    out = prepared[layout][1]
    pixels, patients = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for row in read_annotations(out, split):
            pixels[split].add(np.asarray(open_pair(row.image, row.mask)[0]).tobytes())
            if layout.startswith(("camus", "chexlocalize")):
                # The first release of CAMUS numbers the patients of testing anew.
                release = row.image.parent.name if layout == "camus (first release)" else ""
                patients[split].add(release + row.image.name.split("_")[0])
    for first, second in combinations(SPLITS, 2):
        assert not pixels[first] & pixels[second] and not patients[first] & patients[second]


def test_result_has_a_picture_and_a_notice(prepared, layout):
    out = prepared[layout][1]
    assert min(pixels_of(out / "samples.png").shape[:2]) > 200
    notice = " ".join((out / "LICENSE").read_text().split())
    assert "Read these terms and follow them" in notice and "published by" in notice
    assert {path.name for path in out.iterdir()} == {"anns", "images", "masks", "samples.png", "LICENSE"}


def mask_of(out: Path, split: str, image: str, mask: str | None = None) -> np.ndarray:
    (row,) = [row for row in read_annotations(out, split) if row.image.name == image and (mask or "") in str(row.mask)]
    return open_pair(row.image, row.mask)[1]


def find(out: Path, image: str, mask: str = "") -> tuple[str, dict]:
    """The split and the row of an image, of several the one whose mask's name holds `mask`."""
    (found,) = [
        (split, row)
        for split, rows in rows_of(out).items()
        for row in rows
        if row["img_name"] == image and mask in row["mask_name"]
    ]
    return found


DISC_LEFT, DISC_RIGHT = (np.asarray(discs(box)) > 0 for box in (LEFT, RIGHT))


@pytest.mark.parametrize(
    ("layout", "image", "mask", "expected"),
    [
        ("bkai", f"{0:032x}.jpeg", "", DISC_LEFT | DISC_RIGHT),
        ("busi", "2_benign.png", "", DISC_LEFT | DISC_RIGHT),
        ("busi", "2_malignant.png", "", DISC_LEFT),
        ("busi", "3_normal.png", "", np.zeros(SIZE[::-1], bool)),
        ("clinicdb", "3.png", "", DISC_LEFT),
        ("chexlocalize", "patient2_study1_view1_frontal.jpg", "pleural_effusion", DISC_LEFT | DISC_RIGHT),
    ],
    ids=["two colours", "two files", "one file", "normal", "tif", "run lengths"],
)
def test_masks_are_joined(prepared, layout, image, mask, expected):
    out = prepared[layout][1]
    split, row = find(out, image, mask)
    found = mask_of(out, split, image, mask)
    # JPEG smears the edges of published masks by a pixel.
    assert (found != expected).sum() <= 0.1 * expected.sum()
    if not expected.any():
        assert row["bbox"] == [*SIZE, 0, 0]


def test_categories_number_the_classes(prepared):
    diagnoses = ("benign", "malignant", "normal")
    findings = {"airspace_opacity": 0, "pleural_effusion": 8}
    expected = {
        "busi": lambda row: diagnoses.index(Path(row["img_name"]).stem.split("_")[1]),
        "camus": lambda row: int(row["mask_name"].removeprefix("mask_")[0]) - 1,
        "chexlocalize": lambda row: findings[Path(row["mask_name"]).stem.split("frontal_")[-1].split("lateral_")[-1]],
        "kvasir": lambda row: 0,
    }
    for layout, category in expected.items():
        rows = [row for split in rows_of(prepared[layout][1]).values() for row in split]
        assert [row["cat"] for row in rows] == [category(row) for row in rows]


@pytest.mark.parametrize("layout", ["camus", "camus (first release)"])
def test_camus_has_a_mask_for_each_structure(prepared, layout):
    out = prepared[layout][1]
    for split in SPLITS:
        image = rows_of(out)[split][0]["img_name"]
        for label, (left, top, right, bottom) in STRUCTURES.items():
            mask = mask_of(out, split, image, f"mask_{label}/")
            assert mask[top:bottom, left:right].all() and mask.sum() == (bottom - top) * (right - left)
            assert (out / "images" / ("test" if split == "test" else "train") / image).is_file()


def test_images_are_copied_where_their_format_stays(prepared):
    for layout, raw_name, name in (
        ("kvasir", "images/cju04.jpg", "cju04.jpg"),
        ("isic2016", "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000100.jpg", "ISIC_0000100.jpg"),
    ):
        raw, out = prepared[layout]
        assert (raw / raw_name).read_bytes() == (out / "images" / name).read_bytes()
    raw, out = prepared["clinicdb"]
    written = out / "images" / "7.png"
    assert written.read_bytes().startswith(b"\x89PNG")
    assert np.array_equal(pixels_of(raw / "CVC-ClinicDB" / "Original" / "7.tif"), pixels_of(written))
    camus = prepared["camus"][1] / "images/train/patient0001_2CH_ES.png"
    assert np.array_equal(pixels_of(camus), np.asarray(picture(11, mode="L")))


@pytest.mark.parametrize(
    ("layout", "image", "mask", "key", "wording"),
    [
        ("kvasir", "cju03.jpg", "", "p1", "polyp"),
        ("kvasir", "cju03.jpg", "", "p6", "one small red circle polyp, located in left of the image"),
        ("kvasir", "cju03.jpg", "", "p7", "polyp which is a rounded bump of soft tissue in the colon"),
        (
            "bkai",
            f"{0:032x}.jpeg",
            "",
            "p9",
            "two medium red circle polyp which is a raised growth on the inner wall of the bowel located in left, "
            "right of the image",
        ),
        ("clinicdb", "5.png", "", "p5", "one small red circle polyp"),
        ("isic2016", "ISIC_0000100.jpg", "", "p3", "red circle skin melanoma"),
        (
            "dfu",
            "train_0001.png",
            "",
            "p8",
            "one small red circle foot ulcer which is an open wound on the foot or a toe",
        ),
        ("dfu", "0003.png", "", "p6", "foot ulcer"),
        ("dfu", "0003.png", "", "p9", "foot ulcer which is an open wound on the foot or a toe"),
        (
            "busi",
            "2_benign.png",
            "",
            "p6",
            "Two medium circle-shaped regular tumors at the left, right in the breast ultrasound image.",
        ),
        ("busi", "2_malignant.png", "", "p2", "Irregular-shaped tumor in the breast ultrasound image."),
        ("busi", "3_normal.png", "", "p6", "No tumor in the breast ultrasound image."),
        (
            "camus",
            "patient0005_2CH_ES.png",
            "mask_1",
            "p7",
            "Left ventricular cavity of rectangle shape in two-chamber view of the heart at end of the systole cycle "
            "of a fifty-six-year-old female with good image quality.",
        ),
        (
            "camus",
            "patient0005_4CH_ED.png",
            "mask_3",
            "p4",
            "Left atrium cavity in four-chamber view of the heart at end of the diastole cycle of a male.",
        ),
        (
            "chexlocalize",
            "patient20_study1_view1_frontal.jpg",
            "airspace_opacity",
            "p5",
            "Airspace Opacity of shape circle, and located in left of the frontal view of a Chest Xray. Airspace "
            "Opacity, Pleural Effusion are present.",
        ),
        (
            "chexlocalize",
            "patient1_study1_view2_lateral.jpg",
            "airspace",
            "p2",
            "Airspace Opacity in the lateral view of a Chest Xray.",
        ),
    ],
)
def test_prompts_say_what_mask_and_image_show(prepared, layout, image, mask, key, wording):
    value = find(prepared[layout][1], image, mask)[1]["prompts"][key]
    texts = value if isinstance(value, list) else [value]
    assert wording in texts


def test_published_splits_stay(prepared):
    isic = rows_of(prepared["isic2016"][1])
    assert {row["img_name"] for row in isic["test"]} == {f"ISIC_{index:07d}.jpg" for index in (100, 101, 102)}
    # Training image 1 is published in test, too: the copy in training is left out.
    assert "ISIC_0000001.jpg" not in {row["img_name"] for split in ("train", "val") for row in isic[split]}
    dfu = rows_of(prepared["dfu"][1])
    assert {row["img_name"] for row in dfu["val"]} == {f"validation_{index:04d}.png" for index in range(3)}
    camus = rows_of(prepared["camus"][1])
    assert {row["img_name"][:11] for row in camus["val"]} == {"patient0004"}
    assert {row["img_name"][:11] for row in camus["test"]} == {"patient0005", "patient0006"}
    chest = rows_of(prepared["chexlocalize"][1])
    assert {row["img_name"].split("_")[0] for row in chest["test"]} == {"patient20", "patient21", "patient22"}


@pytest.mark.parametrize("tie", ["pixels", "patient"])
def test_the_split_that_is_measured_keeps_what_two_have(tie):
    def sample(number, split, same):
        image = np.full((4, 4), same if tie == "pixels" else number, np.uint8)
        whose = f"patient {same}" if tie == "patient" else None
        names = (f"{number}.png", f"{number}.png")
        return prepare_dataset.Sample(split, *names, 0, ("polyp",), lambda: (image, image > 0), patient=whose)

    published = [("val", 1), ("test", 1), (None, 1), (None, 2), ("val", 2), ("train", 3), ("val", 3), (None, 4)]
    samples = [sample(number, *place) for number, place in enumerate(published)]
    kept, left_out = prepare_dataset.assign_splits(samples, 0)
    assert {(each.image_name, each.split) for each in kept} == {
        *(("1.png", "test"), ("4.png", "val"), ("6.png", "val"), ("7.png", "train"))
    }
    assert [each.image_name for each in left_out] == ["0.png", "2.png", "3.png", "5.png"]


@pytest.mark.parametrize("seed", range(4))
def test_a_tenth_of_the_images_is_drawn_and_one_group_at_least_for_each_split(seed):
    def draw(*images):
        """Samples of images by the number of their masks and their patient."""
        samples = [
            prepare_dataset.Sample(
                *(None, f"{number}.png", f"{number}_{mask}.png", 0, ("polyp",)),
                load=lambda number=number: (np.full((4, 4), number, np.uint8), np.ones((4, 4), bool)),
                patient=patient,
            )
            for number, (masks, patient) in enumerate(images)
            for mask in range(masks)
        ]
        kept, _ = prepare_dataset.assign_splits(samples, seed)
        return [len({sample.image_name for sample in kept if sample.split == split}) for split in SPLITS]

    assert draw(*[(10, None)] * 10, *[(1, None)] * 10) == [16, 2, 2]
    assert min(draw(*[(1, "one")] * 20, (1, "two"), (1, "three"))) == 1


def test_seed_decides_drawn_splits_and_nothing_else_does(prepared, tmp_path):
    raw, out = prepared["kvasir"]
    for name, seed in (("again", 0), ("other", 1)):
        run_example(prepare_dataset, "kvasir", raw, tmp_path / name, "--seed", seed)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    again = tmp_path / "again"
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((out / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert rows_of(tmp_path / "other") != rows_of(out)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_copies_of_an_image_are_drawn_together(tmp_path, seed):
    for index in range(12):
        # PNG and TIFF of the same pixels differ in their bytes.
        suffix = "png" if index % 2 else "tif"
        save(picture(index // 2), tmp_path, f"raw/Original/{index}.{suffix}")
        save(discs(LEFT), tmp_path, f"raw/Ground Truth/{index}.tif")
    run_example(prepare_dataset, "clinicdb", tmp_path / "raw", tmp_path / "out", "--seed", seed)
    for rows in rows_of(tmp_path / "out").values():
        numbers = {int(row["segment_id"]) for row in rows}
        assert numbers and {number ^ 1 for number in numbers} == numbers


@pytest.mark.parametrize(
    ("count", "filled"), [(1, "train"), (2, "train, val"), (3, "train, val, test")], ids=["one", "two", "three"]
)
def test_few_images_fill_training_first(capsys, tmp_path, count, filled):
    for index in range(count):
        save(picture(index), tmp_path, f"raw/images/{index}.jpg")
        save(discs(LEFT), tmp_path, f"raw/masks/{index}.jpg")
    run_example(prepare_dataset, "kvasir", tmp_path / "raw", tmp_path / "out")
    assert ", ".join(split for split, rows in rows_of(tmp_path / "out").items() if len(rows) == 1) == filled
    assert ("got no row" in capsys.readouterr().out) == (count < 3)


def test_videos_of_clinicdb_stay_together(tmp_path):
    raw = tmp_path / "raw"
    write_clinicdb(raw)
    lines = [f"{index},{(index - 1) // 3},TIF/Original/{index}.tif" for index in range(1, 13)]
    (raw / "metadata.csv").write_text("\n".join(["frame_id,sequence_id,tif_image_path", *lines]) + "\n")
    run_example(prepare_dataset, "clinicdb", raw, tmp_path / "out")
    videos = {
        split: {(int(row["segment_id"]) - 1) // 3 for row in rows} for split, rows in rows_of(tmp_path / "out").items()
    }
    assert sorted(video for split in videos.values() for video in split) == [0, 1, 2, 3]
    assert all(videos.values())


@pytest.mark.parametrize(
    ("layout", "images", "empty", "duplicates"),
    [("kvasir", 12, 0, 0), ("bkai", 12, 0, 1), ("isic2016", 15, 0, 1), ("dfu", 15, 1, 0), ("busi", 12, 4, 1)],
)
def test_check_counts_and_writes_nothing(prepared, capsys, tmp_path, monkeypatch, layout, images, empty, duplicates):
    monkeypatch.chdir(tmp_path)
    raw = prepared[layout][0]
    before = sorted(raw.rglob("*"))
    run_example(prepare_dataset, layout, raw, "--check")
    report = capsys.readouterr().out
    assert f"{layout}: images {images}, rows {images}, empty masks {empty}, duplicates {duplicates} " in report
    assert "over-long prompts 0 (over 77 tokens" in report
    assert sorted(raw.rglob("*")) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "layout", ["kvasir", "bkai", "isic2016", "dfu", "camus", "camus (first release)", "chexlocalize"]
)
def test_raw_may_be_the_folder_round_the_published_one(prepared, capsys, tmp_path, layout):
    (tmp_path / "published").symlink_to(prepared[layout][0])
    reports = []
    for raw in (tmp_path, prepared[layout][0]):
        run_example(prepare_dataset, layout.split()[0], raw, "--check")
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1]


def test_check_names_what_it_counts(prepared, capsys):
    run_example(prepare_dataset, "busi", prepared["busi"][0], "--check")
    report = capsys.readouterr().out
    assert "duplicate: 1_malignant.png = 1_benign.png" in report and "empty mask: 1_normal.png" in report


def test_check_after_writing_counts_what_was_left_out_too(prepared, capsys, tmp_path):
    run_example(prepare_dataset, "isic2016", prepared["isic2016"][0], tmp_path / "out", "--check")
    report = capsys.readouterr().out
    assert "train 10, val 1, test 3 rows" in report and "left out 1 rows" in report
    assert "images 15, rows 15, empty masks 0, duplicates 1" in report
    assert (tmp_path / "out" / "anns" / "test.json").is_file()


def test_check_reads_a_written_folder(prepared, capsys):
    run_example(prepare_dataset, "busi", prepared["busi"][1], "--check")
    assert "busi: images 12, rows 12, empty masks 4, duplicates 1" in capsys.readouterr().out


@pytest.fixture
def anns(prepared, tmp_path):
    """A user's own annotations of Kvasir: other splits and prompts, JPEG masks, an image twice, and a long prompt."""
    names = [f"cju{index:02d}.jpg" for index in (0, 1, 2, 2)]
    rows = [{"img_name": name, "mask_name": name, "prompts": {"p0": "", "p1": "my polyp"}} for name in names]
    rows[0]["prompts"]["p2"] = ["polyp " * 90, "short"]
    folder = tmp_path / "anns"
    folder.mkdir()
    for split, part in zip(SPLITS, (rows[2:], rows[1:2], rows[:1]), strict=True):
        (folder / f"{split}.json").write_text(json.dumps(part))
    return folder


def test_own_annotations_are_kept_as_they_are(prepared, anns, capsys, tmp_path):
    out = tmp_path / "out"
    run_example(prepare_dataset, "kvasir", prepared["kvasir"][0], out, "--anns", anns, "--check")
    report = capsys.readouterr().out
    assert "train 2, val 1, test 1 rows" in report and "images 3, rows 4" in report
    assert "over-long prompts 1 " in report
    for split in SPLITS:
        assert rows_of(out)[split] == json.loads((anns / f"{split}.json").read_text())
        for row in read_annotations(out, split):
            assert row.mask.read_bytes().startswith(b"\xff\xd8")
            with Image.open(row.mask) as mask:
                assert set(chain.from_iterable(mask.quantization.values())) == {1}, "JPEG at its best"
            measured = mask_of(prepared["kvasir"][1], find(prepared["kvasir"][1], row.image.name)[0], row.image.name)
            assert np.array_equal(open_pair(row.image, row.mask)[1], measured)


def test_own_annotations_may_be_named_by_their_data_set(prepared, anns, tmp_path):
    run_example(prepare_dataset, "kvasir", prepared["kvasir"][0], tmp_path / "out", "--anns", anns.parent)
    assert len(rows_of(tmp_path / "out")["train"]) == 2


def test_own_annotations_of_camus_tell_training_from_testing(prepared, tmp_path):
    raw, written = prepared["camus (first release)"]
    folder = tmp_path / "anns"
    folder.mkdir()
    for split in SPLITS:
        rows = [{key: row[key] for key in ("img_name", "mask_name", "prompts")} for row in rows_of(written)[split]]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    run_example(prepare_dataset, "camus", raw, out, "--anns", folder)
    for path in (written / "images").rglob("*.png"):
        assert path.read_bytes() == (out / path.relative_to(written)).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda anns: (anns / "val.json").unlink(), "val.json does not exist"),
        (lambda anns: (anns / "val.json").write_text("[{"), "val.json is not valid JSON"),
        (lambda anns: (anns / "val.json").write_text("{}"), "must hold a list of rows"),
        (lambda anns: (anns / "val.json").write_text("[]"), "holds no rows"),
        (lambda anns: (anns / "val.json").write_text("[1]"), "row 0 (counted from 0) must be an object"),
        (lambda anns: rewrite(anns, img_name="nowhere.jpg"), "RAW has no 'nowhere.jpg'"),
        (lambda anns: rewrite(anns, mask_name="../cju01.jpg"), "mask_name is '../cju01.jpg'"),
        (lambda anns: rewrite(anns, prompts={"p1": 7}), "expected a string or a list of strings"),
    ],
    ids=["missing", "half", "no list", "no rows", "no object", "unknown image", "leaves the folder", "no text"],
)
def test_bad_annotations_are_named(prepared, anns, capsys, tmp_path, change, message):
    change(anns)
    error = failure_of(capsys, prepare_dataset, "kvasir", prepared["kvasir"][0], tmp_path / "out", "--anns", anns)
    assert message in error and [path.name for path in tmp_path.iterdir()] == ["anns"]


def rewrite(anns: Path, **fields: object) -> None:
    (row,) = json.loads((anns / "val.json").read_text())
    (anns / "val.json").write_text(json.dumps([{**row, **fields}]))


MISSING = {
    "kvasir": "images is not a folder: expected Kvasir-SEG as published",
    "bkai": "train is not a folder: expected BKAI-IGH NeoPolyp as published",
    "clinicdb": "Original is not a folder: expected CVC-ClinicDB as published",
    "isic2016": "ISBI2016_ISIC_Part1_Training_Data is not a folder: expected ISIC 2016 as published",
    "dfu": "train/images is not a folder: expected train/images, train/labels",
    "camus": "patient0001 is not a folder: expected CAMUS as published",
    "busi": "benign is not a folder: expected Dataset_BUSI_with_GT as published",
    "chexlocalize": "gt_segmentations_val.json does not exist: expected CheXlocalize as published",
}


@pytest.mark.parametrize("flags", [(), ("--check",)], ids=["write", "check"])
@pytest.mark.parametrize("name", WRITERS)
def test_folder_of_something_else_is_refused_with_the_layout_that_was_expected(capsys, tmp_path, name, flags):
    raw = tmp_path / "raw"
    (raw / "holiday").mkdir(parents=True)
    error = failure_of(capsys, prepare_dataset, name, raw, *(flags or (tmp_path / "out",)))
    assert f"{raw}/{MISSING[name]}" in error and [path.name for path in tmp_path.iterdir()] == ["raw"]


VIDEOS_OF_ONE = "frame_id,sequence_id\n1,1\n2\n"


def remove(pattern: str):
    def change(raw: Path) -> None:
        (path,) = raw.glob(pattern)
        path.unlink()

    return change


def remove_all(pattern: str):
    def change(raw: Path) -> None:
        for path in raw.glob(pattern):
            path.unlink()

    return change


def replace_text(name: str, old: str, new: str):
    def change(raw: Path) -> None:
        text = (raw / name).read_text()
        assert old in text
        (raw / name).write_text(text.replace(old, new, 1))

    return change


def cut_in_half(pattern: str):
    def change(raw: Path) -> None:
        (path,) = raw.glob(pattern)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


VAL = "CheXlocalize/gt_segmentations_val.json"
SCAN = "database_nifti/patient0003/patient0003_2CH_ED.nii.gz"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kvasir", remove("masks/cju05.jpg"), "images/cju05.jpg has no mask"),
        ("kvasir", lambda raw: save(discs(LEFT).resize((30, 24)), raw, "masks/cju05.jpg"), "make them one size"),
        ("kvasir", lambda raw: (raw / "images/cju05.jpg").write_bytes(b"\xff\xd8\xff"), "cju05.jpg"),
        ("kvasir", remove_all("images/*.jpg"), "images holds no image"),
        ("kvasir", lambda raw: save(picture(5), raw, "images/cju05.png"), "would become cju05.png"),
        ("clinicdb", lambda raw: (raw / "metadata.csv").write_text("a,b\n1,2\n"), "sequence_id and frame_id"),
        (
            "busi",
            lambda raw: save(discs(), raw, "Dataset_BUSI_with_GT/benign/benign (9)_mask.png"),
            "is a mask without its image",
        ),
        ("busi", remove("*/benign/benign (3)_mask.png"), "has no mask benign (3)_mask.png"),
        ("camus", remove("*/patient0002/patient0002_4CH_ES_gt.nii.gz"), "patient0002_4CH_ES_gt.nii.gz (or .mhd) does"),
        ("clinicdb", lambda raw: (raw / "CVC-ClinicDB/metadata.csv").write_text(VIDEOS_OF_ONE), "the video of"),
        ("camus", lambda raw: (raw / SCAN).write_bytes(b"no volume"), "patient0003_2CH_ED.nii.gz cannot be read"),
        ("camus", lambda raw: write_volume(np.zeros((3, 5, 5), np.uint8), raw / SCAN), "expected one slice"),
        ("camus", cut_in_half(SCAN), "patient0003_2CH_ED.nii.gz cannot be read"),
        (
            "camus",
            lambda raw: write_volume(np.full((48, 60), np.nan, np.float32), raw / SCAN),
            "patient0003_2CH_ED.nii.gz holds values that are not finite",
        ),
        ("chexlocalize", remove("CheXpert/val/patient3/study1/view1_frontal.jpg"), "view1_frontal.jpg of"),
        ("chexlocalize", replace_text(VAL, "Edema", "Edemas"), "has the finding 'Edemas'"),
        ("chexlocalize", replace_text(VAL, '"counts"', '"count"'), "Airspace Opacity has no size and counts"),
        ("chexlocalize", replace_text(VAL, "[48, 60]", "[60, 48]"), "make them one size"),
        ("chexlocalize", replace_text(VAL, "[48, 60]", "[48]"), "expected [height, width]"),
        ("chexlocalize", lambda raw: (raw / VAL).write_text("[]"), "must map image names"),
        ("chexlocalize", lambda raw: (raw / VAL).write_text("{"), "is not valid JSON"),
        ("chexlocalize", lambda raw: (raw / VAL).write_text("[" * 100_000), "is not valid JSON"),
        (
            "chexlocalize",
            replace_text(VAL, '"counts": "', '"counts": "ZZZZo'),
            "Airspace Opacity: segmentation has co",
        ),
        ("chexlocalize", replace_text(VAL, '"counts": "', '"counts": "~~'), "Airspace Opacity: segmentation has co"),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(capsys, tmp_path, name, change, message):
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS[name](raw)
    change(raw)
    assert message in failure_of(capsys, prepare_dataset, name, raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_run_lengths_may_be_numbers(prepared, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_chexlocalize(raw)
    entries = json.loads((raw / VAL).read_text())
    counts = np.diff(np.flatnonzero(np.diff(DISC_LEFT.T.ravel().astype(int), prepend=2, append=2))).tolist()
    assert sum(counts[1::2]) == DISC_LEFT.sum()
    entries["patient2_study1_view1_frontal"]["Airspace Opacity"] = {"size": [48, 60], "counts": counts}
    (raw / VAL).write_text(json.dumps(entries))
    run_example(prepare_dataset, "chexlocalize", raw, tmp_path / "out")
    assert rows_of(tmp_path / "out") == rows_of(prepared["chexlocalize"][1])


def in_latin_1(*names: str):
    def change(raw: Path) -> None:
        for name in names:
            with (raw / name).open("ab") as file:
                file.write("Jos\u00e9\n".encode("latin-1"))

    return change


def in_a_repository(raw: Path) -> None:
    """Three folders further down, beside what macOS packs into archives."""
    parts = list(raw.iterdir())
    inner = raw / "wound-segmentation" / "data" / "Foot Ulcer Segmentation Challenge"
    inner.mkdir(parents=True)
    for part in parts:
        part.rename(inner / part.name)
    save(picture(0), raw, "__MACOSX/train/images/0000.png")
    save(picture(0), raw, "__MACOSX/train/labels/0000.png")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dfu", in_a_repository),
        ("camus", in_a_repository),
        ("chexlocalize", in_a_repository),
        ("camus", in_latin_1("database_split/subgroup_testing.txt", "database_nifti/patient0001/Info_2CH.cfg")),
    ],
)
def test_what_surrounds_the_published_files_changes_nothing(prepared, tmp_path, name, change):
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS[name](raw)
    change(raw)
    run_example(prepare_dataset, name, raw, tmp_path / "out")
    assert rows_of(tmp_path / "out") == rows_of(prepared[name][1])


def test_a_scan_of_one_level_is_black(tmp_path):
    (tmp_path / "raw").mkdir()
    write_camus(tmp_path / "raw")
    write_volume(np.full((48, 60), 500, np.int16), tmp_path / "raw" / SCAN)
    run_example(prepare_dataset, "camus", tmp_path / "raw", tmp_path / "out")
    assert not pixels_of(tmp_path / "out" / "images/train/patient0003_2CH_ED.png").any()


@pytest.mark.parametrize(
    ("layout", "module", "extra"),
    [
        ("camus", "nibabel", "medical"),
        ("camus (first release)", "SimpleITK", "medical"),
        ("chexlocalize", "pycocotools", "train"),
    ],
)
def test_missing_package_says_what_to_install(prepared, capsys, monkeypatch, tmp_path, layout, module, extra):
    sys.modules["raw_datasets.camus"]._read.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    error = failure_of(capsys, prepare_dataset, layout.split()[0], prepared[layout][0], tmp_path / "out")
    assert f'pip install "peft-vlsm[{extra}]"' in error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kvasir",), "RAW"),
        (("kvasir", "RAW"), "OUT (or kvasir --check)"),
        (("kvasir", "nowhere", "--check"), "RAW nowhere is not a folder"),
        (("kvasir", "nowhere", "--check", "--tokenizer", "."), "--tokenizer . is no tokenizer"),
    ],
    ids=["no RAW", "no OUT", "missing RAW", "no tokenizer"],
)
def test_wrong_command_line_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in failure_of(capsys, prepare_dataset, *arguments)


def test_every_data_set_has_its_notice():
    for name in WRITERS:
        assert (EXAMPLES / "notices" / f"{name}.txt").stat().st_size > 500
