"""Files that a data set names: read whole, found below its folder and nowhere else."""

import json
import os
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from peft_vlsm.segmentation.errors import InputError


def read_text(file: Path, hint: str) -> str:
    """
    Reads a UTF-8 file, with or without a byte order mark.

    Args:
        file (`Path`): the file.
        hint (`str`): what to do where it does not exist.

    Raises:
        InputError: it does not exist, cannot be read or is not UTF-8.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist: {hint}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not valid JSON: it is not UTF-8 ({error})") from error


def read_json(file: Path, hint: str) -> Any:
    """
    Reads a JSON file.

    Raises:
        InputError: it does not exist, cannot be read or is not JSON.
    """
    text = read_text(file, hint)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def find_below(root: Path, folders: list[Path], field: str, name: Any) -> Path:
    """
    Finds a file by the name that a data set gives it.

    Args:
        root (`Path`): the folder that no file may lie outside of, links followed.
        folders (`list[Path]`): where to look, in this order; `root` or below it.
        field (`str`): what messages call the name.
        name (`Any`): the name, with folders of its own perhaps.

    Returns:
        `Path`: the first such file.

    Raises:
        InputError: the name is no text, leads out of the folder, or no such file exists.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"{field} must be a file name, it is {name!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{field} {name!r} leaves the data folder; give a path below {folders[0]}")
    candidates = [folder / path for folder in folders]
    # macOS writes "e" and an accent where others write one letter: such names look alike, and archives mix them.
    spellings = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    alike = [folder / spelling for folder in folders for spelling in spellings]
    # os.path.isfile is False for names that the file system cannot even hold, where Path.is_file raises.
    found = next((file for file in (*candidates, *alike) if os.path.isfile(file)), None)
    if found is None:
        raise InputError(f"{field} {name!r} does not exist; looked for {', '.join(map(str, candidates))}")
    if not found.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{field} {name!r} is a link that leaves the data folder (to {found.resolve()}); copy the file in"
        )
    return found
