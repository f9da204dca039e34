"""The folders that publishers distribute, in miniature: file names, formats and oddities as in the real ones."""

import json
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

SIZE = (60, 48)
LEFT, RIGHT = (6, 16, 21, 31), (40, 18, 51, 29)


def picture(seed: int, *boxes: tuple, mode: str = "RGB") -> Image.Image:
    """A dark image of its own with red discs in it."""
    noise = np.random.default_rng(seed).integers(0, 50, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for box in boxes or (LEFT,):
        ImageDraw.Draw(image).ellipse(box, fill=(220, 30, 30))
    return image.convert(mode)


def discs(*boxes: tuple, colours: tuple = (255, 255)) -> Image.Image:
    """A mask of these discs, each in its level or colour."""
    image = Image.new("L" if isinstance(colours[0], int) else "RGB", SIZE)
    for box, colour in zip(boxes, colours, strict=False):
        ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def save(image: Image.Image, *parts: object, **options: object) -> None:
    path = Path(*map(str, parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_kvasir(raw: Path) -> None:
    for index in range(12):
        save(picture(index), raw, f"images/cju{index:02d}.jpg")
        save(discs(LEFT), raw, f"masks/cju{index:02d}.jpg", quality=60)
    (raw / "kavsir_bboxes.json").write_text("{}")


def write_bkai(raw: Path) -> None:
    """Folders in folders, as Kaggle packs them; image 0 has both colours, image 1 is its copy, test has no masks."""
    for index in range(12):
        boxes = (LEFT, RIGHT) if index < 2 else (LEFT,)
        save(picture(max(index, 1), *boxes), raw, f"train/train/{index:032x}.jpeg")
        save(discs(*boxes, colours=((255, 0, 0), (0, 255, 0))), raw, f"train_gt/train_gt/{index:032x}.jpeg")
    save(picture(99), raw, "test/f.jpeg")


def write_clinicdb(raw: Path) -> None:
    for index in range(1, 13):
        save(picture(index), raw, f"CVC-ClinicDB/Original/{index}.tif")
        save(discs(LEFT), raw, f"CVC-ClinicDB/Ground Truth/{index}.tif")


def write_isic2016(raw: Path) -> None:
    """Test image 1 is training image 1 again."""
    for part, first, count in (("Training", 0, 12), ("Test", 100, 3)):
        for index in range(first, first + count):
            seed = 1 if index == 101 else index
            save(picture(seed), raw, f"ISBI2016_ISIC_Part1_{part}_Data/ISIC_{index:07d}.jpg", quality=95)
            save(discs(LEFT), raw, f"ISBI2016_ISIC_Part1_{part}_GroundTruth/ISIC_{index:07d}_Segmentation.png")


def write_dfu(raw: Path) -> None:
    """FUSeg: names repeat, one mask is empty, and test has no masks."""
    for part, first, count in (("train", 0, 12), ("validation", 50, 3), ("test", 80, 2)):
        for index in range(count):
            save(picture(first + index), raw, part, "images", f"{index:04d}.png")
            if part != "test":
                boxes = () if (part, index) == ("train", 3) else (LEFT,)
                save(discs(*boxes), raw, part, "labels", f"{index:04d}.png")


def write_dfuc(raw: Path) -> None:
    """DFUC2022: JPEG images and PNG masks of one folder each."""
    for index in range(12):
        save(picture(index), raw, f"DFUC2022_train_release/DFUC2022_train_images/{100000 + index}.jpg")
        save(discs(LEFT), raw, f"DFUC2022_train_release/DFUC2022_train_masks/{100000 + index}.png")


STRUCTURES = {1: (8, 8, 20, 30), 2: (24, 8, 34, 38), 3: (40, 30, 54, 44)}


def write_patient(folder: Path, seed: int, suffix: str, masks: bool = True) -> None:
    """Both views at both instants, as CAMUS has them, with the sequence that is not read."""
    folder.mkdir(parents=True)
    labels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    for label, (left, top, right, bottom) in STRUCTURES.items():
        labels[top:bottom, left:right] = label
    names = [f"{folder.name}_{view}_{instant}" for view in ("2CH", "4CH") for instant in ("ED", "ES")]
    for number, name in enumerate(names):
        write_volume(np.asarray(picture(10 * seed + number, mode="L")), folder / (name + suffix))
        if masks:
            write_volume(labels, folder / f"{name}_gt{suffix}")
    write_volume(np.zeros((3, 5, 5), np.uint8), folder / f"{folder.name}_2CH_half_sequence{suffix}")
    facts = "ED: 1\nES: 18\nNbFrame: 18\nSex: F\nAge: 56\nImageQuality: Good\nEF: 54\n"
    (folder / "Info_2CH.cfg").write_text(facts)
    (folder / "Info_4CH.cfg").write_text(facts.replace("Sex: F", "Sex: M").replace("Good", "Poor"))


def write_volume(array: np.ndarray, path: Path) -> None:
    """NIfTI counts columns first; the first release's MHD files have a third axis of length 1."""
    if path.name.endswith(".nii.gz"):
        nibabel.Nifti1Image(array.T, np.eye(4)).to_filename(path)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array if array.ndim == 3 else array[None]), str(path))


def write_camus(raw: Path) -> None:
    for number in range(1, 7):
        write_patient(raw / "database_nifti" / f"patient{number:04d}", number, ".nii.gz")
    (raw / "database_split").mkdir()
    for name, numbers in (("training", (1, 2, 3)), ("validation", (4,)), ("testing", (5, 6))):
        lines = "".join(f"patient{number:04d}\n" for number in numbers)
        (raw / "database_split" / f"subgroup_{name}.txt").write_text(lines)


def write_first_camus(raw: Path) -> None:
    """MHD files; the names of testing repeat those of training."""
    for number in range(1, 5):
        write_patient(raw / "training" / f"patient{number:04d}", number, ".mhd")
    write_patient(raw / "testing" / "patient0001", 9, ".mhd")


def write_busi(raw: Path) -> None:
    """benign (2) has three masks and malignant (1) is a copy of benign (1); normal images have empty masks."""
    root = raw / "Dataset_BUSI_with_GT"
    for category, name in enumerate(("benign", "malignant", "normal")):
        for number in range(1, 5):
            boxes = () if name == "normal" else (LEFT, RIGHT) if (name, number) == ("benign", 2) else (LEFT,)
            copied = (name, number) == ("malignant", 1)
            save(picture(1 if copied else 10 * category + number, *boxes), root, name, f"{name} ({number}).png")
            save(discs(*boxes[:1]), root, name, f"{name} ({number})_mask.png")
            for further, box in enumerate(2 * boxes[1:], 1):
                save(discs(box), root, name, f"{name} ({number})_mask_{further}.png")


def run_lengths(*boxes: tuple) -> dict:
    coded = coco_mask.encode(np.asfortranarray(np.asarray(discs(*boxes)) > 0).astype(np.uint8))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


def write_chexlocalize(raw: Path) -> None:
    """Each image lacks one of three findings, which is an empty mask in the file."""
    for split, numbers in (("val", range(1, 7)), ("test", range(20, 23))):
        entries = {}
        for number in numbers:
            for view in ("view1_frontal", "view2_lateral") if number == 1 else ("view1_frontal",):
                seed = 2 * number + len(view)
                save(picture(seed, mode="L"), raw, f"CheXpert/{split}/patient{number}/study1/{view}.jpg")
                entries[f"patient{number}_study1_{view}"] = {
                    "Airspace Opacity": run_lengths(LEFT),
                    "Pleural Effusion": run_lengths(LEFT, RIGHT),
                    "Edema": run_lengths(),
                }
        file = raw / "CheXlocalize" / f"gt_segmentations_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(entries))


WRITERS = {
    "kvasir": write_kvasir,
    "bkai": write_bkai,
    "clinicdb": write_clinicdb,
    "isic2016": write_isic2016,
    "dfu": write_dfu,
    "camus": write_camus,
    "busi": write_busi,
    "chexlocalize": write_chexlocalize,
}
VARIANTS = {**WRITERS, "dfu (DFUC2022)": write_dfuc, "camus (first release)": write_first_camus}
