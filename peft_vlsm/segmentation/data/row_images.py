"""The images of a data set's rows: what names each, which rows show the same one, and their true masks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import ClassVar

import numpy as np
from PIL import Image

from peft_vlsm.segmentation.data.annotations import AnnotationRow
from peft_vlsm.segmentation.sources.coco import CocoRow
from peft_vlsm.segmentation.sources.rows import Row


@dataclass(frozen=True)
class RowImage:
    """
    An image of a data set, which stands in results where a [`Slice`] stands for a file's image.

    Args:
        file (`str`): its file's path, or what messages call the record that holds it. No two images have the same.
        name (`Path`): a file name for its results.
        rows (`tuple[Row, ...]`): the rows that show it, at least one.
    """

    file: str
    name: Path
    rows: tuple[Row, ...] = field(compare=False, repr=False)
    index: ClassVar[None] = None

    def __str__(self) -> str:
        return self.file

    def check(self) -> None:
        """Reads the image and all its masks whole; raises [`InputError`] where they cannot be used."""
        for row in self.rows:
            row.open()

    def read(self) -> Image.Image:
        """Reads the image, upright in mode RGB."""
        return self.rows[0].open()[0]


def image_name(row: Row) -> str:
    """What names a row's image, which several rows may share: its file, or else the row, which then has it alone."""
    return str(row.image) if isinstance(row, (AnnotationRow, CocoRow)) else row.name


def images_of(rows: Sequence[Row]) -> list[RowImage]:
    """
    Brings together the rows that show the same image.

    Args:
        rows (`Sequence[Row]`): of one data set.

    Returns:
        `list[RowImage]`: in the order of each image's first row.
    """
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(image_name(row), []).append(row)
    return [RowImage(name, _file_name(group[0]), tuple(group)) for name, group in grouped.items()]


def joined_mask(rows: Sequence[Row]) -> np.ndarray:
    """The masks of an image's rows (at least one) as a single mask, `(height, width)` of type `bool`."""
    return np.logical_or.reduce([row.open()[1] for row in rows])


def _file_name(row: Row) -> Path:
    if isinstance(row, (AnnotationRow, CocoRow)):
        return row.image
    # A record's name may hold dots, none of which begins a suffix.
    return Path(re.sub(r"[^\w.-]+", "-", PurePath(row.name).name) + ".png")
