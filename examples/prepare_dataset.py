"""Writes a segmentation data set in the layout that fine-tuning reads: annotations, images, masks and the licence.

    python examples/prepare_dataset.py brain-mri OUT

    OUT/anns/{train,val,test}.json    rows with image, mask and the prompts p0 to p6
    OUT/images/*.png                  greyscale or RGB
    OUT/masks/*.png                   0 and 255, each of its image's size
    OUT/LICENSE                       whose the images are, and on what terms

To add a data set, write a function that lists its samples and give it a row in `DATASETS`. A function that reads files
which the user has downloaded takes their folder, and the command line then reads `NAME RAW OUT`.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from peft_vlsm.segmentation.annotations import SPLITS
from peft_vlsm.segmentation.arguments import OneLineParser
from peft_vlsm.segmentation.attributes import measure_attributes
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.output_folder import write_beside
from peft_vlsm.segmentation.prompt_templates import compose_prompts

NOTICES = Path(__file__).parent / "notices"

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


@dataclass(frozen=True)
class Sample:
    """
    One image with one mask; several samples may share an image.

    Args:
        split (`str`): one of `SPLITS`.
        image_name (`str`): file name of the image, which ends in .png.
        mask_name (`str`): file name of the mask, which ends in .png.
        category (`int`): index of the mask's class.
        class_names (`tuple[str, ...]`): what prompts may call the class.
        load (`Callable[[], tuple[np.ndarray, np.ndarray]]`):
            gives the image, uint8 of shape (height, width) or (height, width, 3), and the mask, bool of shape
            (height, width) and not empty.
    """

    split: str
    image_name: str
    mask_name: str
    category: int
    class_names: tuple[str, ...]
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Dataset:
    """
    A row of `DATASETS`.

    Args:
        list_samples (`Callable[..., list[Sample]]`): gives the samples; its argument is RAW where `needs_raw`.
        needs_raw (`bool`): whether the user brings a folder of downloaded files.
        notice (`Path`): the licence notice that becomes OUT/LICENSE.
        description (`str`): what `--help` says.
    """

    list_samples: Callable[..., list[Sample]]
    needs_raw: bool
    notice: Path
    description: str


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


DATASETS = {
    "brain-mri": Dataset(
        list_brain_mri,
        needs_raw=False,
        notice=NOTICES / "brain-mri.txt",
        description="slices of the MNI152 T1 template: grey matter, white matter, brain; nothing to download",
    ),
}


def write_dataset(samples: Iterable[Sample], folder: Path) -> dict[str, list[dict]]:
    """
    Writes images, masks and annotations; the same samples give the same bytes.

    Args:
        samples (`Iterable[Sample]`): the samples, in the order of the rows.
        folder (`Path`): an empty folder.

    Returns:
        `dict[str, list[dict]]`: the rows of each split.

    Raises:
        [`InputError`]: an image and its mask do not fit, or a mask is empty.
    """
    for name in ("anns", "images", "masks"):
        (folder / name).mkdir()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for sample in tqdm(samples, desc="slices and masks", unit="mask"):
        image, mask = sample.load()
        rows[sample.split].append(annotate(sample, image, mask, number=len(rows[sample.split])))
        if not (folder / "images" / sample.image_name).exists():
            Image.fromarray(image).save(folder / "images" / sample.image_name)
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / sample.mask_name)
    for split in SPLITS:
        (folder / "anns" / f"{split}.json").write_text(json.dumps(rows[split], indent=1) + "\n", encoding="utf-8")
    return rows


def annotate(sample: Sample, image: np.ndarray, mask: np.ndarray, number: int) -> dict:
    """
    One row of an annotation file.

    Args:
        sample ([`Sample`]): what is annotated.
        image (`np.ndarray`): its image.
        mask (`np.ndarray`): its mask.
        number (`int`): the row's place in its file.

    Returns:
        `dict`: the fields of MedVLSM's rows; `bbox` is the first and the last column and row, as [x0, y0, x1, y1].
    """
    try:
        attributes = measure_attributes(image, mask)
    except ValueError as error:
        raise InputError(f"{sample.mask_name}: {error}; mend the file or take it out of RAW") from None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return {
        "bbox": [int(edge) for edge in (columns[0], rows[0], columns[-1], rows[-1])],
        "cat": sample.category,
        "segment_id": Path(sample.mask_name).stem,
        "img_name": sample.image_name,
        "mask_name": sample.mask_name,
        "sentences": [{"idx": 0, "sent_id": number, "sent": ""}],
        "sentences_num": 1,
        "prompts": compose_prompts(sample.class_names, attributes),
    }


def parse_arguments() -> argparse.Namespace:
    """Reads NAME, RAW where the data set needs it, and OUT from the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True, title="data sets")
    for name, dataset in DATASETS.items():
        arguments = names.add_parser(name, help=dataset.description, description=dataset.description)
        if dataset.needs_raw:
            arguments.add_argument("raw", metavar="RAW", type=Path, help="the folder with the downloaded files")
        arguments.add_argument("out", metavar="OUT", type=Path, help="the folder to write, new or empty")
    return parser.parse_args()


@exit_on_input_error
def main() -> None:
    arguments = parse_arguments()
    dataset = DATASETS[arguments.name]
    if dataset.needs_raw and not arguments.raw.is_dir():
        raise InputError(f"RAW {arguments.raw} is not a folder: name the one with the downloaded files")
    with write_beside(arguments.out) as folder:
        samples = dataset.list_samples(arguments.raw) if dataset.needs_raw else dataset.list_samples()
        rows = write_dataset(samples, folder)
        shutil.copyfile(dataset.notice, folder / "LICENSE")
    print(f"{arguments.out}: " + ", ".join(f"{split} {len(rows[split])}" for split in SPLITS) + " rows")


if __name__ == "__main__":
    main()
