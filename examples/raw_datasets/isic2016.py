"""ISIC 2016, part 1 (skin lesions): the published test split stays, validation is drawn from training."""

from functools import partial
from pathlib import Path

from peft_vlsm.segmentation.prompts.templates import compose_prompts
from raw_datasets.files import Layout, list_images, load_pair, output_name, pair_masks
from raw_datasets.samples import Sample

PREFIX = "ISBI2016_ISIC_Part1"
DESCRIPTIONS = (
    "a dark patch that differs from the skin around it",
    "a pigmented spot with an uneven border",
    "a mole-like mark with several shades of brown",
    "an area of skin with irregular pigment",
    "a lesion of the skin that may be a melanoma",
)
LAYOUT = Layout(
    tuple(f"{PREFIX}_{part}" for part in ("Training_Data", "Training_GroundTruth", "Test_Data", "Test_GroundTruth")),
    f"ISIC 2016 as published, {PREFIX}_Training_Data/*.jpg, {PREFIX}_Training_GroundTruth/*_Segmentation.png, "
    f"{PREFIX}_Test_Data and {PREFIX}_Test_GroundTruth likewise",
)


def list_isic2016(raw: Path) -> list[Sample]:
    """Dermoscopic JPEG images, PNG masks."""
    base = LAYOUT.find_base(raw)
    return [
        Sample(
            split=split,
            image_name=output_name(image),
            mask_name=f"{image.stem}_Segmentation.png",
            category=0,
            class_names=("skin melanoma",),
            load=partial(load_pair, image, mask),
            describe=partial(compose_prompts, descriptions=DESCRIPTIONS),
            may_be_empty=True,
            source=image,
            segment_id=image.stem,
        )
        for part, split in (("Training", None), ("Test", "test"))
        for image, mask in pair_masks(
            list_images(base / f"{PREFIX}_{part}_Data"), base / f"{PREFIX}_{part}_GroundTruth", "_Segmentation"
        )
    ]
