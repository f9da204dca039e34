"""
The MedVLSM layout, read and checked as a whole before anything else happens.

    DATA_DIR/anns/train.json, val.json, test.json     each a list of rows with img_name, mask_name and prompts
    DATA_DIR/images/..., DATA_DIR/masks/...           the files, either directly there or in a folder per split

A row's names may hold folders of their own (`mask_1/NAME`). Where the files lie in a folder per split, validation may
share the training folder (`images/train`, `masks/train`), as in CAMUS.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from peft_vlsm.segmentation.errors import InputError

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"train": ("", "train"), "val": ("", "val", "train"), "test": ("", "test")}
EMPTY_PROMPT = "p0"


@dataclass(frozen=True)
class AnnotationRow:
    """
    One image with one mask and the prompts that name what the mask shows.

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


def read_annotations(data_dir: str | Path, split: str) -> list[AnnotationRow]:
    """
    Reads one split of a data set in the MedVLSM layout.

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
    entries = _read_json_list(file)
    rows: list[AnnotationRow] = []
    problems: list[str] = []
    for index, entry in enumerate(entries):
        try:
            rows.append(_read_row(root, split, index, entry))
        except InputError as error:
            problems.append(f"{file}, row {index} (counted from 0): {error}")
    if problems:
        others = f" ({len(problems) - 1} more rows have problems)" if len(problems) > 1 else ""
        raise InputError(problems[0] + others)
    return rows


def _read_json_list(file: Path) -> list[Any]:
    if not file.is_file():
        raise InputError(f"{file} does not exist: a data set holds anns/train.json, anns/val.json and anns/test.json")
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"{file} must hold a list of rows, it holds a JSON {type(entries).__name__}")
    if not entries:
        raise InputError(f"{file} holds no rows; give it at least one")
    return entries


def _read_row(root: Path, split: str, index: int, entry: Any) -> AnnotationRow:
    if not isinstance(entry, dict):
        raise InputError(
            f"must be an object with img_name, mask_name and prompts, it is a JSON {type(entry).__name__}"
        )
    missing = [field for field in ("img_name", "mask_name", "prompts") if field not in entry]
    if missing:
        raise InputError(f"has no {' and no '.join(missing)}; every row needs img_name, mask_name and prompts")
    image = _find_file(root, "images", split, "img_name", entry["img_name"])
    mask = _find_file(root, "masks", split, "mask_name", entry["mask_name"])
    return AnnotationRow(index, image, mask, _read_prompts(entry["prompts"]))


def _find_file(root: Path, folder: str, split: str, field: str, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise InputError(f"{field} must be a file name, it is {name!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{field} {name!r} leaves the data folder; give a path below {root / folder}")
    candidates = [root / folder / place / path for place in SPLIT_FOLDERS[split]]
    # os.path.isfile is False for names that the file system cannot even hold, where Path.is_file raises.
    found = next((file for file in candidates if os.path.isfile(file)), None)
    if found is None:
        raise InputError(f"{field} {name!r} does not exist; looked for {', '.join(map(str, candidates))}")
    if not found.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{field} {name!r} is a link that leaves the data folder (to {found.resolve()}); copy the file in"
        )
    return found


def _read_prompts(prompts: Any) -> dict[str, list[str]]:
    if not isinstance(prompts, dict):
        raise InputError(f"prompts must be an object of p0, p1, ..., it is a JSON {type(prompts).__name__}")
    read: dict[str, list[str]] = {}
    for key, value in prompts.items():
        if not re.fullmatch(r"p(0|[1-9][0-9]{0,3})", key):
            raise InputError(f"prompts has the unknown key {key!r}; prompts are named p0, p1, p2, ...")
        texts = value if isinstance(value, list) else [value]
        if key == EMPTY_PROMPT:
            if texts != [""]:
                raise InputError(f'prompts has {value!r} as p0; p0 is always "", give the prompt another number')
        elif not texts or not all(map(_is_prompt, texts)):
            raise InputError(f"prompts has an empty prompt or one that is not text: {key} is {value!r}")
        else:
            read[key] = texts
    if not read:
        raise InputError('prompts holds no prompt but p0, which is always ""; give at least p1')
    return dict(sorted(read.items(), key=lambda item: int(item[0][1:])))


def _is_prompt(text: Any) -> bool:
    # JSON can spell half of a surrogate pair, which is no text and which no tokenizer takes.
    return isinstance(text, str) and bool(text.strip()) and not re.search("[\ud800-\udfff]", text)
