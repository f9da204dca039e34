"""The polyp data sets, each a folder of images and a folder of masks: Kvasir-SEG, BKAI-IGH NeoPolyp, CVC-ClinicDB.

CVC-ClinicDB's frames come from 29 videos. Where `metadata.csv` tells the video of each frame (`sequence_id` and
`frame_id`, as on Kaggle), a video stays in one split; the publisher's own archive does not say.
"""

import csv
from functools import partial
from pathlib import Path

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prompts.templates import compose_prompts
from raw_datasets.files import (
    Layout,
    list_images,
    load_coloured_pair,
    load_pair,
    output_name,
    pair_masks,
    read_facts,
)
from raw_datasets.samples import Sample

DESCRIPTIONS = (
    "a raised growth on the inner wall of the bowel",
    "a rounded bump of soft tissue in the colon",
    "a fleshy lump that stands out from the mucosa",
    "a growth of the bowel lining, with or without a stalk",
    "a swelling of the mucosa that may turn into cancer",
)
KVASIR = Layout(("images", "masks"), "Kvasir-SEG as published, images/*.jpg and masks/*.jpg of the same names")
BKAI = Layout(("train", "train_gt"), "BKAI-IGH NeoPolyp as published, train/*.jpeg and train_gt/*.jpeg")
CLINICDB = Layout(("Original", "Ground Truth"), "CVC-ClinicDB as published, Original/*.tif and Ground Truth/*.tif")


def list_kvasir(raw: Path) -> list[Sample]:
    """Kvasir-SEG: JPEG images, JPEG masks."""
    base = KVASIR.find_base(raw)
    pairs = pair_masks(list_images(base / "images"), base / "masks")
    return [_polyp(image, partial(load_pair, image, mask)) for image, mask in pairs]


def list_bkai(raw: Path) -> list[Sample]:
    """BKAI-IGH NeoPolyp: masks show neoplastic polyps in red and others in green; both are polyps. Its test folder
    has no masks, and is not read."""
    base = BKAI.find_base(raw)
    pairs = pair_masks(list_images(base / "train"), base / "train_gt")
    return [_polyp(image, partial(load_coloured_pair, image, mask)) for image, mask in pairs]


def list_clinicdb(raw: Path) -> list[Sample]:
    """CVC-ClinicDB: TIFF or, in its PNG folder, PNG files."""
    base = CLINICDB.find_base(raw)
    table = next((place / "metadata.csv" for place in (base, base.parent) if (place / "metadata.csv").is_file()), None)
    videos = {} if table is None else _read_videos(table)
    images = sorted(list_images(base / "Original"), key=lambda path: (len(path.stem), path.stem))
    pairs = pair_masks(images, base / "Ground Truth")
    if table is not None and (unknown := next((image for image in images if image.stem not in videos), None)):
        raise InputError(f"{table} does not tell the video of {unknown}: bring it as published or take it out")
    return [_polyp(image, partial(load_pair, image, mask), videos.get(image.stem)) for image, mask in pairs]


def _polyp(image: Path, load: partial, video: str | None = None) -> Sample:
    return Sample(
        split=None,
        image_name=output_name(image),
        mask_name=f"{image.stem}.png",
        category=0,
        class_names=("polyp",),
        load=load,
        describe=partial(compose_prompts, descriptions=DESCRIPTIONS),
        may_be_empty=True,
        source=image,
        patient=video,
        segment_id=image.stem,
    )


def _read_videos(file: Path) -> dict[str, str]:
    rows = list(csv.DictReader(read_facts(file).splitlines()))
    if not rows or not {"sequence_id", "frame_id"} <= rows[0].keys():
        raise InputError(f"{file} has no columns sequence_id and frame_id: bring it as published or take it out")
    return {row["frame_id"]: row["sequence_id"] for row in rows if row["sequence_id"]}
