"""CheXlocalize (chest X-rays): masks as run lengths in one JSON file a split, one mask for each finding of an image.

The published test split stays. The published validation images are all that there is to train on, so that training
and validation are drawn from them, by patient. Findings that an image lacks have empty masks in the file; as in
MedVLSM they give no row.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prompts.templates import compose_xray_prompts
from peft_vlsm.segmentation.sources.files import read_json
from peft_vlsm.segmentation.sources.rle import read_rle
from raw_datasets.files import fit, read_image, search_bases
from raw_datasets.samples import Sample

FINDINGS = (
    "Airspace Opacity",
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumothorax",
    "Support Devices",
)
FILES = {"gt_segmentations_val.json": None, "gt_segmentations_test.json": "test"}
IMAGES = {None: ("CheXpert/val", "CheXpert/valid", "CheXpert-v1.0/valid"), "test": ("CheXpert/test",)}
EXPECTED = (
    "CheXlocalize as published, CheXpert/val and CheXpert/test with patientN/studyN/viewN_frontal.jpg, and "
    "gt_segmentations_val.json and gt_segmentations_test.json in RAW or its CheXlocalize/"
)


def list_chexlocalize(raw: Path) -> list[Sample]:
    """A sample for each finding that an image has."""
    bases = search_bases(raw)
    samples = []
    for name, split in FILES.items():
        places = (place for base in bases for place in (base / name, base / "CheXlocalize" / name))
        file = next((place for place in places if place.is_file()), None)
        if file is None and split is None:
            raise InputError(f"{raw / name} does not exist: expected {EXPECTED}")
        if file is not None:
            images = _find_images(bases, split)
            for image_id, masks in _read_json(file).items():
                samples += _list_image(file, image_id, masks, images, split)
    return samples


def _find_images(bases: Sequence[Path], split: str | None) -> Path:
    places = (base / name for base in bases for name in IMAGES[split])
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise InputError(f"{bases[0] / IMAGES[split][0]} is not a folder: expected {EXPECTED}")
    return folder


def _read_json(file: Path) -> dict[str, dict[str, Any]]:
    entries = read_json(file, f"expected {EXPECTED}")
    if not isinstance(entries, dict) or not all(isinstance(masks, dict) for masks in entries.values()):
        raise InputError(f"{file} must map image names to findings and their run lengths: expected {EXPECTED}")
    return entries


def _list_image(file: Path, image_id: str, masks: dict, folder: Path, split: str | None) -> list[Sample]:
    # patient1_study1_view1_frontal is the file patient1/study1/view1_frontal.jpg.
    parts = image_id.split("_", 2)
    image = folder.joinpath(*parts).with_suffix(".jpg")
    if len(parts) < 3 or not image.is_file():
        raise InputError(f"{image} of {file} does not exist: expected {EXPECTED}")
    unknown = [finding for finding in masks if finding not in FINDINGS]
    if unknown:
        raise InputError(f"{file}: {image_id} has the finding {unknown[0]!r}; known are {', '.join(FINDINGS)}")
    coded = {finding: _check(masks[finding], f"{file}: {image_id}, {finding}") for finding in masks}
    present = [finding for finding in masks if _coco().area(coded[finding]) > 0]
    view = "lateral" if "lateral" in parts[2] else "frontal"
    return [
        Sample(
            split=split,
            image_name=f"{image_id}.jpg",
            mask_name=f"{image_id}_{finding.lower().replace(' ', '_')}.png",
            category=FINDINGS.index(finding),
            class_names=(finding,),
            load=partial(_load, image, coded[finding], Path(f"{file}: {image_id}, {finding}")),
            describe=partial(compose_xray_prompts, view=view, findings=present),
            source=image,
            patient=parts[0],
            segment_id=image_id,
        )
        for finding in present
    ]


def _load(image: Path, run_lengths: dict, where: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels = read_image(image)
    with warnings.catch_warnings():
        # pycocotools 2.0.11 meets numpy 2 with a warning that no user can act on.
        warnings.simplefilter("ignore", DeprecationWarning)
        mask = _coco().decode(run_lengths).astype(bool)
    return pixels, fit(mask, where, pixels, image)


def _coco() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError('chexlocalize needs pycocotools to read masks: pip install "peft-vlsm[train]"') from None
    return mask


def _check(run_lengths: Any, where: str) -> dict:
    """COCO's run lengths, compressed to a string or as a list of numbers, in the compressed form."""
    if not isinstance(run_lengths, dict) or not {"size", "counts"} <= run_lengths.keys():
        raise InputError(f"{where} has no size and counts: expected COCO's run lengths")
    size = run_lengths["size"]
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"{where} has size {size!r}: expected [height, width]")
    try:
        code = read_rle(run_lengths, *size)
    except InputError as error:
        raise InputError(f"{where}: {error}: load the file again") from error
    return code if isinstance(code["counts"], bytes) else _coco().frPyObjects(code, *size)
