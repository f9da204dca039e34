"""
Tables of the datasets library: a data set of the Hub, or local Parquet or WebDataset (.tar) shards.

Pictures are left undecoded until a row is opened, so that they pass the same checks as files. Of a shard, bytes alone
are taken: a path in it could name any file of this machine.
"""

import tarfile
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PillowImage
from pyarrow import ArrowException

from peft_vlsm.segmentation.data.images import ImageBytes, ImageSource, check_pair, open_pair
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.rows import prompts_identity, read_each, read_prompts, warn_of_repeats

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
# What the columns are called where the user does not say; the further names are WebDataset's.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
MASK_COLUMNS = ("mask", "mask.png", "mask.jpg", "seg.png")
PROMPT_COLUMNS = ("prompt", "prompts", "txt", "json")
# What pandas writes, and what polars writes.
BINARY = (Value("binary"), Value("large_binary"))
Table = Dataset | IterableDataset


@dataclass(frozen=True)
class Columns:
    """
    Which columns of a table count.

    Args:
        image (`str`): pictures.
        mask (`str`): pictures of 0 and 255.
        prompt (`str`): a text, a list of texts, a class label, an object of p0, p1, ..., or an object with `prompt`.
        labels (`list[str]`, *optional*): the names of a class label.
        takes_paths (`bool`): pictures may be files or addresses that the table names.
    """

    image: str
    mask: str
    prompt: str
    labels: list[str] | None = None
    takes_paths: bool = False

    def pair(self, name: str, record: dict[str, Any]) -> tuple[ImageSource, ImageSource]:
        """Image and mask of a record that messages call `name`; raises [`InputError`] where a cell is empty."""
        return self._picture(name, self.image, record), self._picture(name, self.mask, record)

    def prompts(self, record: dict[str, Any]) -> dict[str, list[str]]:
        """The prompts of a record; see [`read_prompts`]."""
        value = record[self.prompt]
        if self.labels is not None:
            if not isinstance(value, int) or not 0 <= value < len(self.labels):
                raise InputError(f"{self.prompt} must be one of {len(self.labels)} class labels, it is {value!r}")
            value = self.labels[value]
        if isinstance(value, dict) and "prompt" in value:
            value = value["prompt"]
        # A table has every field in every row: what a row lacks is None.
        filled = {key: text for key, text in value.items() if text is not None} if isinstance(value, dict) else value
        return read_prompts(filled, self.prompt)

    def _picture(self, name: str, column: str, record: dict[str, Any]) -> ImageSource:
        cell, name = record[column], f"{name}, {column}"
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise InputError(f"{name} is empty; every row needs a picture there")
        if cell["bytes"] is not None:
            return ImageBytes(f"{name} ({cell['path']})" if cell["path"] else name, cell["bytes"])
        if not self.takes_paths:
            raise InputError(f"{name} names the file {cell['path']!r}; shards must hold the pictures themselves")
        try:
            with fsspec.open(cell["path"], "rb") as file:
                return ImageBytes(cell["path"], cast(Any, file).read())
        except OSError as error:
            raise InputError(f"{cell['path']} cannot be read: {error}") from error


@dataclass(frozen=True)
class RecordRow:
    """
    One record of a table, in memory; a [`Row`].

    Args:
        index (`int`): the record's number, counted from 0.
        prompts (`dict[str, list[str]]`): see [`Row`].
        name (`str`): what messages call it.
        record (`dict`): its cells, pictures undecoded.
        columns ([`Columns`]): which of them count.
    """

    index: int
    prompts: dict[str, list[str]]
    name: str
    record: dict[str, Any] = field(repr=False)
    columns: Columns = field(repr=False)

    def check(self) -> None:
        """See [`check_pair`]."""
        check_pair(*self.columns.pair(self.name, self.record))

    def open(self) -> tuple[PillowImage.Image, np.ndarray]:
        """See [`open_pair`]."""
        return open_pair(*self.columns.pair(self.name, self.record))


@dataclass(frozen=True)
class TableRow:
    """
    One record of a table on disk, read when it is needed; a [`Row`].

    Args:
        index (`int`): the record's number, counted from 0.
        prompts (`dict[str, list[str]]`): see [`Row`].
        name (`str`): what messages call it.
        table (`Dataset`): with the pictures undecoded.
        columns ([`Columns`]): which of its columns count.
    """

    index: int
    prompts: dict[str, list[str]]
    name: str
    table: Dataset = field(repr=False)
    columns: Columns = field(repr=False)

    def check(self) -> None:
        """See [`check_pair`]."""
        check_pair(*self.columns.pair(self.name, self.table[self.index]))

    def open(self) -> tuple[PillowImage.Image, np.ndarray]:
        """See [`open_pair`]."""
        return open_pair(*self.columns.pair(self.name, self.table[self.index]))


def load_table(
    name: str,
    files: list[Path] | None = None,
    split: str = "train",
    config: str | None = None,
    streaming: bool = False,
) -> Table:
    """
    Opens a table by the datasets library.

    Args:
        name (`str`): a data set's name on the Hub, a folder that `datasets.load_dataset` knows, or `"parquet"` or
            `"webdataset"` along with `files`.
        files (`list[Path]`, *optional*): the shards.
        split (`str`): the split's name in the table.
        config (`str`, *optional*): the data set's configuration.
        streaming (`bool`): read records as they are asked for, without a copy in the cache.

    Raises:
        InputError: there is no such data set or split, or a shard is damaged.
    """
    data_files = None if files is None else {split: [str(file) for file in files]}
    try:
        return cast(Table, load_dataset(name, config, data_files=data_files, split=split, streaming=streaming))
    except (*TABLE_ERRORS, ConnectionError) as error:
        what = f"--dataset_name {name}" if files is None else f"{files[0]} or a shard beside it"
        raise InputError(f"{what} cannot be read (split {split}): {deepest(error)}") from error


# What a damaged shard shows as.
TABLE_ERRORS = (OSError, ValueError, DatasetsError, ArrowException, EOFError, tarfile.TarError)


def deepest(error: BaseException) -> BaseException:
    """The error that the others around it were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def find_columns(features: Features | None, given: dict[str, str | None], takes_paths: bool) -> Columns:
    """
    Finds the columns that the user names, or else those with a usual name.

    Args:
        features (`Features`, *optional*): the table's columns.
        given (`dict`): `image`, `mask` and `prompt`: a name, or None.
        takes_paths (`bool`): see [`Columns`].

    Raises:
        InputError: there is no such column, or its type does not fit.
    """
    if features is None:
        raise InputError("the table does not say which columns it has; save it as Parquet")
    found: dict[str, str] = {}
    for kind, usual in (("image", IMAGE_COLUMNS), ("mask", MASK_COLUMNS), ("prompt", PROMPT_COLUMNS)):
        named = given[kind]
        names = usual if named is None else (named,)
        column = next((name for name in names if name in features), None)
        if column is None:
            raise InputError(
                f"--{kind}_column: the table has no {' or '.join(names)}, it has {', '.join(features)}; name one"
            )
        if kind != "prompt" and not _holds_pictures(features[column]):
            raise InputError(f"--{kind}_column {column} holds no pictures but {features[column]}")
        twice = next((other for other, name in found.items() if name == column), None)
        if twice is not None:
            raise InputError(f"--{kind}_column {column} is the column of {twice} too; name another one")
        found[kind] = column
    feature = features[found["prompt"]]
    labels = cast(list[str], feature.names) if isinstance(feature, ClassLabel) else None
    return Columns(found["image"], found["mask"], found["prompt"], labels, takes_paths)


def _holds_pictures(feature: Any) -> bool:
    bytes_and_path = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    return isinstance(feature, Image) or bytes_and_path or feature in BINARY


def undecoded(table: Table, columns: Columns) -> Table:
    """The table's three columns, pictures as `{"bytes", "path"}`."""
    table = table.select_columns([columns.image, columns.mask, columns.prompt])
    for column in (columns.image, columns.mask):
        table = table.cast_column(column, Image(decode=False))
    return table


def read_table(name: str, table: Dataset, columns: Columns) -> list[TableRow]:
    """
    Reads the prompts of a table's records; pictures are read when a row is checked or opened. Rows that repeat
    another one are kept, and counted in a warning.

    Args:
        name (`str`): what messages call the table.
        table (`Dataset`): from [`undecoded`].
        columns ([`Columns`]): from [`find_columns`].

    Returns:
        `list[TableRow]`: at least one.

    Raises:
        InputError: there are no rows, or a prompt cannot be used. Names the first such row, and counts the others.
    """
    records = table.select_columns([columns.prompt])
    prompts = _read_all_prompts(name, records, columns)
    rows = [TableRow(index, row, f"{name}, row {index}", table, columns) for index, row in enumerate(prompts)]
    warn_of_repeats(name, (_identity(row.prompts, table[row.index], columns) for row in rows))
    return rows


def read_records(name: str, records: Iterable[dict[str, Any]], columns: Columns) -> list[RecordRow]:
    """As [`read_table`], of records that are then held in memory: a few rows of a table that is not copied to disk."""
    held = list(records)
    prompts = _read_all_prompts(name, held, columns)
    rows = [
        RecordRow(index, row, f"{name}, row {index}", record, columns)
        for index, (row, record) in enumerate(zip(prompts, held, strict=True))
    ]
    warn_of_repeats(name, (_identity(row.prompts, row.record, columns) for row in rows))
    return rows


def _read_all_prompts(name: str, records: Iterable[Any], columns: Columns) -> list[dict[str, list[str]]]:
    prompts = read_each(name, "row", enumerate(records), columns.prompts)
    if not prompts:
        raise InputError(f"{name} holds no rows; give it at least one")
    return prompts


def _identity(prompts: dict[str, list[str]], record: dict[str, Any], columns: Columns) -> Hashable:
    cells = [record[column] or {"bytes": None, "path": None} for column in (columns.image, columns.mask)]
    contents = (cell["path"] if cell["bytes"] is None else hash(cell["bytes"]) for cell in cells)
    return *contents, prompts_identity(prompts)
