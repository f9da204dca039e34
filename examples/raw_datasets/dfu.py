"""Diabetic foot ulcers, in the layout of DFUC2022 (one training folder) or of FUSeg (train, validation and test).

Published splits stay. Folders without masks (DFUC2022 and FUSeg keep their test masks back) are not read.
"""

from collections import Counter
from functools import partial
from pathlib import Path

from peft_vlsm.segmentation.prompts.templates import compose_prompts
from raw_datasets.files import Layout, list_images, load_pair, output_name, pair_masks, search_bases
from raw_datasets.samples import Sample

DESCRIPTIONS = (
    "an open wound on the foot or a toe",
    "a sore where the skin of the foot has broken down",
    "a raw patch of skin that heals badly",
    "a deep wound of the sole in a person with diabetes",
    "a crater in the skin with exposed tissue",
)
# Folder of images, folder of masks, split.
FUSEG = (
    ("train/images", "train/labels", None),
    ("validation/images", "validation/labels", "val"),
    ("test/images", "test/labels", "test"),
)
DFUC = (("DFUC2022_train_images", "DFUC2022_train_masks", None),)
LAYOUT = Layout(
    FUSEG[0][:2],
    "train/images, train/labels and, if published, validation/ and test/ likewise (FUSeg), or DFUC2022_train_images "
    "and DFUC2022_train_masks (DFUC2022)",
)


def list_dfu(raw: Path) -> list[Sample]:
    """Photographs of feet with PNG masks; a name that two splits share gets its split's folder in front."""
    base, parts = _find_parts(raw)
    pairs = [
        (split, image, mask)
        for images, masks, split in parts
        if (base / images).is_dir() and (base / masks).is_dir()
        for image, mask in pair_masks(list_images(base / images), base / masks)
    ]
    names = Counter(image.stem for _, image, _ in pairs)
    return [_ulcer(split, image, mask, shared=names[image.stem] > 1) for split, image, mask in pairs]


def _find_parts(raw: Path) -> tuple[Path, tuple]:
    for base in search_bases(raw):
        if all((base / folder).is_dir() for folder in DFUC[0][:2]):
            return base, DFUC
    return LAYOUT.find_base(raw), FUSEG


def _ulcer(split: str | None, image: Path, mask: Path, shared: bool) -> Sample:
    prefix = f"{image.parents[1].name}_" if shared else ""
    return Sample(
        split=split,
        image_name=prefix + output_name(image),
        mask_name=f"{prefix}{image.stem}.png",
        category=0,
        class_names=("foot ulcer",),
        load=partial(load_pair, image, mask),
        describe=partial(compose_prompts, descriptions=DESCRIPTIONS),
        may_be_empty=True,
        source=image,
        segment_id=prefix + image.stem,
    )
