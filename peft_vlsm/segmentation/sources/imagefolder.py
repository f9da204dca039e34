"""
An image folder: a metadata.jsonl in each split's folder names the files beside it and their prompts.

    DATA_DIR/train/metadata.jsonl                     {"file_name": "a.png", "mask_file_name": "m.png", "prompt": ...}
    DATA_DIR/validation/... (or val), test/...        a prompt is a text or a list of texts
"""

import json
from pathlib import Path
from typing import Any

from peft_vlsm.segmentation.data.annotations import AnnotationRow
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.files import find_below, read_text
from peft_vlsm.segmentation.sources.rows import prompts_identity, read_each, read_prompts, warn_of_repeats

METADATA = "metadata.jsonl"


def read_imagefolder(folder: Path, prompt_column: str = "prompt") -> list[AnnotationRow]:
    """
    Reads a folder's `metadata.jsonl`. Empty lines are passed over.

    Args:
        folder (`Path`): the folder of one split.
        prompt_column (`str`): the key of the prompt. A list of prompts is drawn from at random.

    Returns:
        `list[AnnotationRow]`: the rows in the file's order, at least one.

    Raises:
        InputError: the file is missing or holds no rows, or a line or a file that it names cannot be used. Names the
            first such line, counted from 1, and counts the others.
    """
    file = folder / METADATA
    text = read_text(file, "an image folder has one in the folder of each split")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no rows; give it at least one")
    fields = read_each(file, "line", lines, lambda line: _read_line(folder, prompt_column, line))
    rows = [AnnotationRow(index, *row) for index, row in enumerate(fields)]
    warn_of_repeats(file, ((row.image, row.mask, prompts_identity(row.prompts)) for row in rows))
    return rows


def _read_line(folder: Path, prompt_column: str, line: str) -> tuple[Path, Path, dict[str, list[str]]]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON: {error}") from error
    needed = ("file_name", "mask_file_name", prompt_column)
    if not isinstance(entry, dict):
        raise InputError(f"must be an object with {', '.join(needed)}, it is a JSON {type(entry).__name__}")
    missing = [field for field in needed if field not in entry]
    if missing:
        raise InputError(f"has no {' and no '.join(missing)}; every line needs {', '.join(needed)}")
    image, mask = (find_below(folder, [folder], field, entry[field]) for field in needed[:2])
    return image, mask, read_prompts(entry[prompt_column], prompt_column)
