"""What every source of data gives: rows of an image, a mask and prompts; and how their problems are reported."""

import logging
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from peft_vlsm.segmentation.errors import InputError

SPLITS = ("train", "val", "test")
EMPTY_PROMPT = "p0"
FIRST_IS_0 = " (counted from 0)"

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Read = TypeVar("Read")


class Row(Protocol):
    """
    One image with one mask and the prompts that name what the mask shows.

    Attributes:
        index (`int`): the row's place in its split's source, counted from 0: what is random about it follows from it.
        prompts (`dict[str, list[str]]`): `p1`, `p2`, ... in the order of their numbers, each with at least one string
            that is not empty. `p0`, which is always "", is left out.
        name (`str`): the image's file or the record, for messages.
    """

    @property
    def index(self) -> int: ...

    @property
    def prompts(self) -> dict[str, list[str]]: ...

    @property
    def name(self) -> str: ...

    def check(self) -> None:
        """Reads the headers of image and mask alone; raises [`InputError`] where they cannot be used."""
        ...

    def open(self) -> tuple[Image.Image, np.ndarray]:
        """Reads the image, upright in mode RGB, and the mask, `(height, width)` of type `bool`."""
        ...


def read_each(file: Any, unit: str, items: Iterable[tuple[int, Item]], read: Callable[[Item], Read]) -> list[Read]:
    """
    Reads all items of a file before it complains about any.

    Args:
        file (`Any`): what messages begin with.
        unit (`str`): what messages call an item, such as `"row"` or `"line"`.
        items (`Iterable[tuple[int, Item]]`): number and item.
        read (`Callable`): reads one of them, and raises [`InputError`] where it cannot.

    Returns:
        `list`: what `read` gave, in order.

    Raises:
        InputError: names the first item with a problem, and counts the others.
    """
    results: list[Read] = []
    problems: list[str] = []
    for number, item in items:
        try:
            results.append(read(item))
        except InputError as error:
            problems.append(f"{file}, {unit} {number}{FIRST_IS_0 if unit == 'row' else ''}: {error}")
    _raise_first(problems, unit)
    return results


def check_rows(rows: Sequence[Row]) -> None:
    """
    Checks every row's image and mask by their headers.

    Raises:
        InputError: names the first row with a problem, and counts the others.
    """
    problems: list[str] = []
    for row in rows:
        try:
            row.check()
        except InputError as error:
            problems.append(str(error))
    _raise_first(problems, "row")


def read_rows(rows: Sequence[Row]) -> None:
    """
    Reads every row's image and mask whole, with a progress bar: damaged pixels show before the work and not in it.

    Raises:
        InputError: names the first row with a problem, and counts the others.
    """
    problems: list[str] = []
    for row in tqdm(rows, desc="reading images and masks", unit="row", leave=False):
        try:
            row.open()
        except InputError as error:
            problems.append(str(error))
    _raise_first(problems, "row")


def _raise_first(problems: list[str], unit: str) -> None:
    if problems:
        others = f" ({len(problems) - 1} more {unit}s have problems)" if len(problems) > 1 else ""
        raise InputError(problems[0] + others)


def warn_of_repeats(file: Any, identities: Iterable[Hashable]) -> int:
    """
    Counts rows that repeat an earlier one in image, mask and prompts. They stay, and weigh so much more: a warning of
    this module's logger says how many there are.

    Args:
        file (`Any`): what the warning names.
        identities (`Iterable[Hashable]`): what makes each row what it is.

    Returns:
        `int`: the number of rows that repeat another.
    """
    known: set[Hashable] = set()
    repeats = sum(identity in known or bool(known.add(identity)) for identity in identities)
    if repeats:
        logger.warning(
            "%s: %d rows repeat another one (the same image, mask and prompts); they are kept", file, repeats
        )
    return repeats


def read_prompts(value: Any, field: str = "prompt") -> dict[str, list[str]]:
    """
    Reads prompts in any of the forms that a source may have them in.

    Args:
        value (`Any`): a text, a list of texts (both become `p1`), or an object of `p0`, `p1`, ... with such values.
        field (`str`): what messages call it.

    Returns:
        `dict[str, list[str]]`: `p1`, `p2`, ... in the order of their numbers, `p0` left out.

    Raises:
        InputError: a prompt is empty or not text, or a key is unknown.
    """
    if not isinstance(value, dict):
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(map(is_prompt, texts)):
            raise InputError(f"{field} must be a text or a list of texts that are not empty, it is {value!r}")
        return {"p1": list(texts)}
    read: dict[str, list[str]] = {}
    for key, entry in value.items():
        if not re.fullmatch(r"p(0|[1-9][0-9]{0,3})", key):
            raise InputError(f"{field} has the unknown key {key!r}; prompts are named p0, p1, p2, ...")
        texts = entry if isinstance(entry, list) else [entry]
        if key == EMPTY_PROMPT:
            if texts != [""]:
                raise InputError(f'{field} has {entry!r} as p0; p0 is always "", give the prompt another number')
        elif not texts or not all(map(is_prompt, texts)):
            raise InputError(f"{field} has an empty prompt or one that is not text: {key} is {entry!r}")
        else:
            read[key] = texts
    if not read:
        raise InputError(f'{field} holds no prompt but p0, which is always ""; give at least p1')
    return dict(sorted(read.items(), key=lambda item: int(item[0][1:])))


def is_prompt(text: Any) -> bool:
    """Whether a value is a text that is not empty: something of it shows."""
    # JSON can spell half of a surrogate pair, which is no text and which no tokenizer takes.
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        return False
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def prompts_identity(prompts: dict[str, list[str]]) -> Hashable:
    """Prompts in a form that can be compared and hashed."""
    return tuple((key, tuple(texts)) for key, texts in prompts.items())
