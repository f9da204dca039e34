"""
The MedVLSM layout, read and checked as a whole before anything else happens.

    DATA_DIR/anns/train.json, val.json, test.json     each a list of rows with img_name, mask_name and prompts
    DATA_DIR/images/..., DATA_DIR/masks/...           the files, either directly there or in a folder per split

A row's names may hold folders of their own (`mask_1/NAME`). Where the files lie in a folder per split, validation may
share the training folder (`images/train`, `masks/train`), as in CAMUS.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peft_vlsm.segmentation.data.images import check_pair, open_pair
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.files import find_below, read_json
from peft_vlsm.segmentation.sources.rows import SPLITS, prompts_identity, read_each, read_prompts, warn_of_repeats

__all__ = ["SPLITS", "AnnotationRow", "read_annotations"]

SPLIT_FOLDERS = {"train": ("", "train"), "val": ("", "val", "train"), "test": ("", "test")}


@dataclass(frozen=True)
class AnnotationRow:
    """
    One image file with one mask file and the prompts that name what the mask shows; a [`Row`].

    Args:
        index (`int`): the row's place in its file, counted from 0.
        image (`Path`): the image file, which exists.
        mask (`Path`): the mask file, which exists.
        prompts (`dict[str, list[str]]`): `p1`, `p2`, ... in the order of their numbers, each with at least one string
            that is not empty. `p0`, which is always "", is left out.
    """

    index: int
    image: Path
    mask: Path
    prompts: dict[str, list[str]]

    @property
    def name(self) -> str:
        """The image's path."""
        return str(self.image)

    def check(self) -> None:
        """See [`check_pair`]."""
        check_pair(self.image, self.mask)

    def open(self) -> tuple[Image.Image, np.ndarray]:
        """See [`open_pair`]."""
        return open_pair(self.image, self.mask)


def read_annotations(data_dir: str | Path, split: str) -> list[AnnotationRow]:
    """
    Reads one split of a data set in the MedVLSM layout. Rows that repeat another one are kept, and counted in a
    warning (see [`warn_of_repeats`]).

    Args:
        data_dir (`str` or `Path`): the folder that holds `anns`, `images` and `masks`.
        split (`str`): `"train"`, `"val"` or `"test"`.

    Returns:
        `list[AnnotationRow]`: the rows in the file's order, at least one.

    Raises:
        InputError: a folder, file or field is missing or cannot be used. Names the file and the first such row,
            counts the others.
    """
    root = Path(data_dir)
    for folder in (root, root / "anns", root / "images", root / "masks"):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: a data set holds anns/, images/ and masks/ (--data_dir)")
    file = root / "anns" / f"{split}.json"
    entries = read_json(file, "a data set holds anns/train.json, anns/val.json and anns/test.json")
    if not isinstance(entries, list):
        raise InputError(f"{file} must hold a list of rows, it holds a JSON {type(entries).__name__}")
    if not entries:
        raise InputError(f"{file} holds no rows; give it at least one")
    rows = read_each(file, "row", enumerate(entries), lambda entry: _read_row(root, split, entry))
    numbered = [AnnotationRow(index, *fields) for index, fields in enumerate(rows)]
    warn_of_repeats(file, ((row.image, row.mask, prompts_identity(row.prompts)) for row in numbered))
    return numbered


def _read_row(root: Path, split: str, entry: Any) -> tuple[Path, Path, dict[str, list[str]]]:
    if not isinstance(entry, dict):
        raise InputError(
            f"must be an object with img_name, mask_name and prompts, it is a JSON {type(entry).__name__}"
        )
    missing = [field for field in ("img_name", "mask_name", "prompts") if field not in entry]
    if missing:
        raise InputError(f"has no {' and no '.join(missing)}; every row needs img_name, mask_name and prompts")
    image, mask = (
        find_below(root, [root / folder / place for place in SPLIT_FOLDERS[split]], field, entry[field])
        for folder, field in (("images", "img_name"), ("masks", "mask_name"))
    )
    if not isinstance(entry["prompts"], dict):
        kind = type(entry["prompts"]).__name__
        raise InputError(f"prompts must be an object of p0, p1, ..., it is a JSON {kind}")
    return image, mask, read_prompts(entry["prompts"], "prompts")
