"""A table of images and prompts, as CSV: which prompts each image is asked for."""

import csv
import re
from pathlib import Path

from peft_vlsm.segmentation.errors import InputError

COLUMNS = ("image", "prompt")


def check_prompt_text(prompt: str, where: str) -> None:
    """
    Refuses a prompt that says nothing.

    Raises:
        InputError: it is empty, or holds bytes that are no text; the message begins with `where`.
    """
    if not prompt.strip() or re.search("[\ud800-\udfff]", prompt):
        raise InputError(f"{where} {prompt!r} is empty or no text; say what to segment")


def read_prompt_table(file: Path) -> tuple[dict[Path, list[str]], int]:
    """
    Reads a CSV file with the columns `image` and `prompt`; others are passed over.

    Args:
        file (`Path`): in UTF-8. Images are named relative to its folder, and lie in it or below it.

    Returns:
        `tuple[dict[Path, list[str]], int]`: the prompts of each image, in the order of the first rows that have them,
        and how many rows were left out since an earlier one says the same.

    Raises:
        InputError: the file cannot be read, lacks a column or has no row; a row names no prompt, or no file below the
            folder. The message names the line.
    """
    folder = file.resolve().parent
    asked: dict[Path, list[str]] = {}
    repeated = 0
    for line, row in _rows(file):
        image, prompt = (row[column] or "" for column in COLUMNS)
        check_prompt_text(prompt, f"{file} line {line}: the prompt")
        place = _place(folder, image, f"{file} line {line}: the image {image!r}")
        prompts = asked.setdefault(place, [])
        repeated += prompt in prompts
        if prompt not in prompts:
            prompts.append(prompt)
    if not asked:
        raise InputError(f"{file} has no row; give one for each image and prompt")
    return asked, repeated


def _rows(file: Path) -> list[tuple[int, dict[str, str | None]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            table = csv.DictReader(opened, strict=True)
            missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
            if missing:
                found = ", ".join(map(str, table.fieldnames or ())) or "none"
                raise InputError(f"{file} lacks the column {missing[0]!r}; its first line names: {found}")
            rows = [(table.line_num, row) for row in table]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is no CSV file in UTF-8: {error}") from error
    for line, row in rows:
        # Else what follows a comma would be cut off.
        if None in row:
            raise InputError(f"{file} line {line} has more cells than the first; put a prompt with commas in quotes")
    return rows


def _place(folder: Path, image: str, where: str) -> Path:
    try:
        place = (folder / image).resolve()
        inside = place.is_relative_to(folder) and not Path(image).is_absolute()
        if not inside:
            raise InputError(f"{where} lies outside the table's folder; put it there and name it relative to it")
        if not place.is_file():
            raise InputError(f"{where} is not there")
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{where} is no file name") from error
    return folder / image
