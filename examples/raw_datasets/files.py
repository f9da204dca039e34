"""Finds and reads the files of a publisher's folder; what is missing is named, with the layout that was expected."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from peft_vlsm.segmentation.data.images import open_image, open_mask
from peft_vlsm.segmentation.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
# What browsers and the pipeline alike can open; other formats become PNG.
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")
# How far below RAW a data set is looked for.
LEVELS = 3


@dataclass(frozen=True)
class Layout:
    """
    How a publisher lays a data set out.

    Args:
        folders (`tuple[str, ...]`): the folders that must be there, relative to one base folder.
        expected (`str`): the layout in words, for messages.
    """

    folders: tuple[str, ...]
    expected: str

    def find_base(self, raw: Path) -> Path:
        """
        The folder that holds all of `folders`: RAW, or a folder below it, as archives unpack.

        Raises:
            InputError: there is none; names the first folder that the nearest candidate lacks.
        """
        bases = search_bases(raw)
        base = min(bases, key=lambda base: len(self._missing(base)))
        if missing := self._missing(base):
            raise InputError(f"{base / missing[0]} is not a folder: expected {self.expected}")
        return base

    def _missing(self, base: Path) -> list[str]:
        return [folder for folder in self.folders if not (base / folder).is_dir()]


def search_bases(raw: Path) -> list[Path]:
    """RAW and the folders below it, the upper ones first: archives and repositories pack a data set into folders."""
    bases, level = [raw], [raw]
    for _ in range(LEVELS):
        level = sorted(path for base in level for path in base.iterdir() if path.is_dir() and not _is_debris(path))
        bases += level
    return bases


def _is_debris(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"


def read_facts(file: Path) -> str:
    """A text file whose facts are ASCII; a name in another encoding beside them does no harm."""
    return file.read_text(encoding="utf-8-sig", errors="replace")


def list_images(folder: Path) -> list[Path]:
    """
    The image files of a folder in the order of their names, hidden ones left out; archives that unpack to
    `train/train` are fine.

    Raises:
        InputError: there is none.
    """
    inner = folder / folder.name
    files = sorted(path for path in (inner if inner.is_dir() else folder).iterdir() if is_image(path))
    if not files:
        raise InputError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): bring the files as published")
    return files


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def pair_masks(images: Iterable[Path], folder: Path, ending: str = "") -> list[tuple[Path, Path]]:
    """
    Finds each image's mask: the file in `folder` of the image's name and `ending`, with any image suffix.

    Raises:
        InputError: an image has no mask.
    """
    masks = {path.stem: path for path in list_images(folder)}
    images = list(images)
    for image in images:
        if image.stem + ending not in masks:
            raise InputError(f"{image} has no mask {folder / image.stem}{ending}.*: add it or take the image out")
    return [(image, masks[image.stem + ending]) for image in images]


def output_name(image: Path) -> str:
    """The image's name in the written data set: its own, or with .png where its format is not kept."""
    return image.name if image.suffix.lower() in KEPT_SUFFIXES else f"{image.stem}.png"


# The samples of one image come one after another, so that each image is decoded once.
@lru_cache(maxsize=2)
def read_image(path: Path) -> np.ndarray:
    """The image, uint8 of shape (height, width, 3)."""
    return np.asarray(open_image(path))


def read_coloured_mask(path: Path) -> np.ndarray:
    """What any of red, green and blue marks, bool of shape (height, width); JPEG noise does not count."""
    return np.asarray(open_image(path)).max(axis=2) > 127


def load_pair(image: Path, *masks: Path) -> tuple[np.ndarray, np.ndarray]:
    """
    The image and the union of its masks; without a mask file it is empty.

    Raises:
        InputError: a file cannot be used, or a mask has another size than its image.
    """
    pixels = read_image(image)
    union = np.zeros(pixels.shape[:2], dtype=bool)
    for path in masks:
        union |= fit(open_mask(path), path, pixels, image)
    return pixels, union


def load_coloured_pair(image: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """As [`load_pair`], with [`read_coloured_mask`]."""
    pixels = read_image(image)
    return pixels, fit(read_coloured_mask(mask), mask, pixels, image)


def fit(mask: np.ndarray, mask_path: Path, image: np.ndarray, image_path: Path) -> np.ndarray:
    """
    The mask, which must be of the image's size.

    Raises:
        InputError: it is not; names both files and both sizes as (height, width).
    """
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"{mask_path} is {mask.shape} but {image_path} is {image.shape[:2]} (height, width): make them one size"
        )
    return mask
