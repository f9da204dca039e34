"""BUSI (breast ultrasound): several masks of an image are joined, and normal images have an empty mask."""

import re
from functools import partial
from pathlib import Path

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prompts.templates import compose_tumor_prompts
from raw_datasets.files import Layout, list_images, load_pair
from raw_datasets.samples import Sample

# What prompts call the tumors of each folder: the diagnosis, and what the outline looks like.
CLASSES = {"benign": ("benign", "regular-shaped"), "malignant": ("malignant", "irregular-shaped"), "normal": ("no",)}
MASK = re.compile(r"(?P<image>.+)_mask(_\d+)?")
LAYOUT = Layout(
    tuple(CLASSES),
    "Dataset_BUSI_with_GT as published, benign/, malignant/ and normal/, each with NAME.png, NAME_mask.png and, for "
    "further tumors, NAME_mask_1.png",
)


def list_busi(raw: Path) -> list[Sample]:
    """PNG images and masks; `benign (7).png` becomes `7_benign.png`."""
    base = LAYOUT.find_base(raw)
    return [
        _scan(image, masks, folder, category)
        for category, folder in enumerate(CLASSES)
        for image, masks in _pair(base / folder)
    ]


def _pair(folder: Path) -> list[tuple[Path, list[Path]]]:
    """Each image with its masks; a normal image may come without any."""
    files = list_images(folder)
    pairs: dict[str, tuple[Path, list[Path]]] = {
        path.stem: (path, []) for path in files if not MASK.fullmatch(path.stem)
    }
    for path in files:
        if match := MASK.fullmatch(path.stem):
            if match["image"] not in pairs:
                raise InputError(f"{path} is a mask without its image {match['image']}.png: add it or take it out")
            pairs[match["image"]][1].append(path)
    for image, masks in pairs.values():
        if not masks and folder.name != "normal":
            raise InputError(f"{image} has no mask {image.stem}_mask.png: add it or take the image out")
    return list(pairs.values())


def _scan(image: Path, masks: list[Path], folder: str, category: int) -> Sample:
    numbered = re.fullmatch(rf"{folder} ?\((\d+)\)", image.stem)
    stem = f"{numbered[1]}_{folder}" if numbered else f"{image.stem}_{folder}"
    return Sample(
        split=None,
        image_name=f"{stem}.png",
        mask_name=f"{stem}.png",
        category=category,
        class_names=CLASSES[folder],
        load=partial(load_pair, image, *masks),
        describe=compose_tumor_prompts,
        may_be_empty=True,
        source=image,
        segment_id=stem,
    )
