"""Slices of the MNI152 brain template that the nilearn wheel carries: nothing to download."""

from functools import partial

import numpy as np

from peft_vlsm.segmentation.errors import InputError
from raw_datasets.samples import Sample

# Axes of a volume whose voxel indices grow to the right, to the front and to the top of the head.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
# Neighbouring slices are nearly the same image: a block of them shares a split, and between blocks four are left out.
# The blocks are short, so that every split has slices of the whole head.
SLICE_BLOCKS = (("train", 10), (None, 4), ("val", 3), (None, 4), ("test", 3), (None, 4))
# A mask below this share of the image is left out.
MINIMUM_MASK = 0.01
TISSUE_NAMES = {
    "grey_matter": ("grey matter", "gray matter", "grey matter tissue"),
    "white_matter": ("white matter", "white matter tissue"),
    "brain": ("brain", "whole brain"),
}


def list_brain_mri() -> list[Sample]:
    """
    Slices of the MNI152 template that the nilearn wheel carries, with masks of grey matter, white matter and brain.

    The template is one average brain, so the test slices show unseen planes of a head that training has seen, not
    unseen patients. Its left and right halves mirror each other exactly: sagittal slices come from the right half
    alone, or a test slice would have its own copy in training.

    Returns:
        `list[Sample]`: up to three a slice; slices keep the template's 1 mm pixels.
    """
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    except ImportError:
        raise InputError('brain-mri needs nilearn, which holds the template: pip install "peft-vlsm[train]"') from None
    loaders = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    t1, grey, white = (np.asarray(load(resolution=1).dataobj) for load in loaders)
    intensity = np.round(255 * t1).astype(np.uint8)
    tissues = {
        "grey_matter": (grey > 0.5) & (grey >= white),
        "white_matter": (white > 0.5) & (white > grey),
        "brain": t1 > 0.2,
    }
    samples = []
    for plane, axis in PLANES.items():
        shares = {name: volume.mean(axis=tuple({0, 1, 2} - {axis})) for name, volume in tissues.items()}
        usable = np.flatnonzero(shares["brain"] >= MINIMUM_MASK)
        if plane == "sagittal":
            usable = usable[usable >= t1.shape[0] // 2]
        for index, split in zip(usable.tolist(), split_in_blocks(len(usable)), strict=True):
            for category, (tissue, class_names) in enumerate(TISSUE_NAMES.items()):
                if split is None or shares[tissue][index] < MINIMUM_MASK:
                    continue
                image_name, mask_name = f"{plane}_{index:03d}.png", f"{plane}_{index:03d}_{tissue}.png"
                load = partial(load_slice, intensity, tissues[tissue], axis, index)
                samples.append(Sample(split, image_name, mask_name, category, class_names, load))
    return samples


def split_in_blocks(count: int) -> list[str | None]:
    """The split of each of `count` consecutive slices, by `SLICE_BLOCKS` over and over; None: left out."""
    cycle = [split for split, length in SLICE_BLOCKS for _ in range(length)]
    return [cycle[position % len(cycle)] for position in range(count)]


def load_slice(image: np.ndarray, mask: np.ndarray, axis: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The slice of both volumes with the head (axial: the face) up; sagittal slices look to the left."""
    step = -1 if axis == PLANES["sagittal"] else 1
    image, mask = (np.moveaxis(volume, axis, 0)[index, ::step, ::-1].T.copy() for volume in (image, mask))
    return image, mask
