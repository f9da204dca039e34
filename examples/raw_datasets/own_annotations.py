"""The user's own MedVLSM annotations: their rows, prompts and splits, matched to the publisher's files by name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from peft_vlsm.segmentation.data.annotations import SPLITS
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.files import read_json
from raw_datasets.files import KEPT_SUFFIXES
from raw_datasets.samples import Sample


def apply_annotations(samples: Sequence[Sample], anns: Path) -> list[Sample]:
    """
    Gives samples the rows of `anns`, whose names and splits they take; samples without a row are left out.

    Args:
        samples (`Sequence[Sample]`): what RAW holds, under the names that MedVLSM gives the files.
        anns (`Path`): the folder with train.json, val.json and test.json, or the one that holds it as `anns`.

    Returns:
        `list[Sample]`: one for each row, in the rows' order. A name's suffix may differ from the sample's.

    Raises:
        InputError: a file is missing or malformed, or a row names what RAW does not hold.
    """
    folder = anns / "anns" if (anns / "anns").is_dir() else anns
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(_bare(sample.image_name), []).append(sample)
    matched = []
    for split in SPLITS:
        file = folder / f"{split}.json"
        for index, row in enumerate(_read_rows(file)):
            where = f"{file}, row {index} (counted from 0)"
            _check_row(row, where)
            sample = _find(by_image, row, split)
            if sample is None:
                raise InputError(f"{where}: RAW has no {row['img_name']!r} with mask {row['mask_name']!r}; remove it")
            names = {"image_name": row["img_name"], "mask_name": row["mask_name"]}
            matched.append(replace(sample, split=split, row=row, may_be_empty=True, **names))
    return matched


def _bare(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _read_rows(file: Path) -> list[Any]:
    rows = read_json(file, "--anns names the folder with train.json, val.json and test.json")
    if not isinstance(rows, list):
        raise InputError(f"{file} must hold a list of rows, it holds a JSON {type(rows).__name__}")
    if not rows:
        raise InputError(f"{file} holds no rows; give it at least one")
    return rows


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("prompts"), dict):
        raise InputError(f"{where} must be an object with img_name, mask_name and prompts")
    texts = [text for value in row["prompts"].values() for text in (value if isinstance(value, list) else [value])]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: prompts are {row['prompts']!r}; expected a string or a list of strings each")
    for field in ("img_name", "mask_name"):
        name = row.get(field)
        path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath()
        if path.suffix.lower() not in KEPT_SUFFIXES or path.is_absolute() or ".." in path.parts:
            raise InputError(f"{where}: {field} is {name!r}; expected a name that ends in {', '.join(KEPT_SUFFIXES)}")


def _find(by_image: dict[str, list[Sample]], row: dict, split: str) -> Sample | None:
    """The sample of the row's image, and where the image has several, of its mask too."""
    found = by_image.get(_bare(row["img_name"]), [])
    # Names of CAMUS's first release occur in training and in testing.
    of_split = [sample for sample in found if (sample.split == "test") == (split == "test")] or found
    if len(of_split) == 1:
        return of_split[0]
    return next((sample for sample in of_split if _bare(sample.mask_name) == _bare(row["mask_name"])), None)
