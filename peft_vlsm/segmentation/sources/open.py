"""Which source the user's flags mean, and the rows of its splits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import datasets
from datasets import Dataset, IterableDataset, get_dataset_split_names
from packaging.version import Version

from peft_vlsm.segmentation.data.annotations import read_annotations
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.arguments import SPLIT_FLAGS, DataArguments
from peft_vlsm.segmentation.sources.coco import FILE_PREFIX, read_coco
from peft_vlsm.segmentation.sources.imagefolder import METADATA, read_imagefolder
from peft_vlsm.segmentation.sources.rows import Row
from peft_vlsm.segmentation.sources.tables import (
    BUILDERS,
    TABLE_ERRORS,
    Columns,
    deepest,
    find_columns,
    load_table,
    read_records,
    read_table,
    undecoded,
)

STREAMS_RESUME = Version("5.2")
# Beside the images of each split, as Roboflow exports COCO.
ROBOFLOW = "_annotations.coco.json"
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
Kind = Literal["medvlsm", "coco", "imagefolder", "shards", "hub"]


@dataclass(frozen=True)
class Source:
    """
    One split of the user's data.

    Args:
        kind (`str`): `"medvlsm"`, `"coco"`, `"imagefolder"`, `"shards"` or `"hub"`.
        name (`str`): what messages call it.
        folder (`Path`): the data folder; of COCO the folder of images.
        files (`list[Path]`): the annotation file, or the shards.
        split (`str`): the split's name in the source.
    """

    kind: Kind
    name: str
    folder: Path
    files: tuple[Path, ...]
    split: str


@dataclass(frozen=True)
class Stream:
    """
    A table that is read while training runs.

    Args:
        name (`str`): what messages call it.
        table (`IterableDataset`): the three columns, pictures undecoded.
        columns ([`Columns`]): their names.
    """

    name: str
    table: IterableDataset
    columns: Columns


def find_source(args: DataArguments, split: str) -> Source | None:
    """
    Finds a split.

    Args:
        args ([`DataArguments`]): the user's flags.
        split (`str`): `"train"`, `"val"` or `"test"`.

    Returns:
        [`Source`], or None where the data has no such split. Nothing of it was read yet.

    Raises:
        InputError: the data folder holds no data in a form that is known, or the data set cannot be asked.
    """
    if args.is_given("annotations"):
        file, root = args.of_split("annotations", split), Path(args.image_root or "")
        return None if file is None else Source("coco", file, root, (Path(file),), split)
    if args.dataset_name is not None:
        return _find_hub_split(args.dataset_name, args.dataset_config_name, split)
    if args.is_given("data_dir"):
        folder = args.of_split("data_dir", split)
        return None if folder is None else _source_of_folder(Path(folder), f"--{SPLIT_FLAGS[split]}_data_dir", split)
    return _find_in_data_dir(Path(cast(str, args.data_dir)), split)


def has_split(args: DataArguments, split: str) -> bool:
    """Whether the user's data has a split at all: without one for testing, say, a run can end with validation."""
    return find_source(args, split) is not None


def load_rows(args: DataArguments, split: str, seed: int = 0) -> Sequence[Row]:
    """
    Reads one split of the user's data, at most `--max_train_samples` or `--max_eval_samples` rows of it.

    Args:
        args ([`DataArguments`]): the user's flags.
        split (`str`): `"train"`, `"val"` or `"test"`.
        seed (`int`): of the phrases that `--negatives` draws.

    Returns:
        `Sequence[Row]`: at least one. The headers of their files are checked by [`SegmentationDataset`].

    Raises:
        InputError: there is no such split (see [`has_split`]), or some of it cannot be used.
    """
    source = _existing(args, split)
    _check_flags_of(args, source)
    limit = args.max_train_samples if split == "train" else args.max_eval_samples
    if source.kind in ("shards", "hub"):
        return _read_table(args, source, limit)
    if source.kind == "medvlsm":
        return read_annotations(source.folder, source.split)[:limit]
    if source.kind == "imagefolder":
        return read_imagefolder(source.folder, args.prompt_column or "prompt")[:limit]
    return read_coco(source.files[0], source.folder, args.negatives, seed)[:limit]


def open_stream(args: DataArguments, split: str = "train") -> Stream:
    """
    Opens a table to be read while training runs (`--streaming`). Its first record is read, so that columns and prompts
    that do not fit show at once.

    Raises:
        InputError: the data is no table, a column is missing, or the first record cannot be used; or the datasets
            library is too old.
    """
    if Version(datasets.__version__) < STREAMS_RESUME:
        raise InputError(
            f"--streaming needs datasets {STREAMS_RESUME} or later, and this is {datasets.__version__}, whose streams "
            "lose rows when they resume; pip install -U datasets transformers"
        )
    source = _existing(args, split)
    _check_flags_of(args, source)
    table = _load(args, source)
    columns = find_columns(table.features, args.columns(), source.kind == "hub")
    stream = undecoded(table, columns)
    if not isinstance(stream, IterableDataset):
        raise InputError("--streaming is not given")
    if args.max_train_samples is not None:
        stream = stream.take(args.max_train_samples)
    try:
        first = next(iter(stream), None)
    except TABLE_ERRORS as error:
        raise InputError(f"{source.name} cannot be read: {deepest(error)}") from error
    if first is None:
        raise InputError(f"{source.name} holds no rows; give it at least one")
    try:
        columns.prompts(first)
        columns.pair(source.name, first)
    except InputError as error:
        raise InputError(f"{source.name}, first row: {error}") from error
    return Stream(source.name, stream, columns)


def _existing(args: DataArguments, split: str) -> Source:
    source = find_source(args, split)
    if source is not None:
        return source
    name = SPLIT_FLAGS[split]
    if args.is_given("annotations"):
        raise InputError(f"--{name}_annotations is missing: the {name} split needs one")
    if args.is_given("data_dir"):
        raise InputError(f"--{name}_data_dir is missing: the {name} split needs one")
    place = f"--dataset_name {args.dataset_name}" if args.dataset_name else f"--data_dir {args.data_dir}"
    raise InputError(f"{place} has no {name} split; it may be called {' or '.join(SPLIT_NAMES[split])}")


def _check_flags_of(args: DataArguments, source: Source) -> None:
    """A folder's kind shows when it is read: then flags can be idle that [`DataArguments`] let pass."""
    is_table = source.kind in ("shards", "hub")
    idle = {
        "streaming": args.streaming and not is_table,
        "image_column": args.image_column is not None and not is_table,
        "mask_column": args.mask_column is not None and not is_table,
        "prompt_column": args.prompt_column is not None and not is_table and source.kind != "imagefolder",
        "negatives": args.negatives > 0 and source.kind != "coco",
    }
    for name, does_nothing in idle.items():
        if does_nothing:
            wanted = "COCO annotations" if name == "negatives" else "Parquet or WebDataset shards or a Hub data set"
            raise InputError(f"--{name} does nothing with {source.name} ({source.kind}); it is for {wanted}")


def _read_table(args: DataArguments, source: Source, limit: int | None) -> Sequence[Row]:
    loaded = _load(args, source)
    columns = find_columns(loaded.features, args.columns(), source.kind == "hub")
    table = undecoded(loaded, columns)
    if limit is not None:
        table = table.take(limit)
    if isinstance(table, Dataset):
        return read_table(source.name, table, columns)
    try:
        return read_records(source.name, table, columns)
    except InputError:
        raise
    except TABLE_ERRORS as error:
        raise InputError(f"{source.name} cannot be read: {deepest(error)}") from error


def _load(args: DataArguments, source: Source) -> Dataset | IterableDataset:
    if source.kind == "hub":
        name = cast(str, args.dataset_name)
        return load_table(name, split=source.split, config=args.dataset_config_name, streaming=args.streaming)
    builder = BUILDERS[source.files[0].suffix]
    return load_table(builder, list(source.files), split=source.split, streaming=args.streaming)


def _find_hub_split(name: str, config: str | None, split: str) -> Source | None:
    try:
        names = get_dataset_split_names(name, config)
    except (*TABLE_ERRORS, ConnectionError) as error:
        raise InputError(f"--dataset_name {name} cannot be read: {deepest(error)}") from error
    found = next((own for own in SPLIT_NAMES[split] if own in names), None)
    return None if found is None else Source("hub", f"{name} ({found})", Path(), (), found)


def _find_in_data_dir(root: Path, split: str) -> Source | None:
    _check_readable(root)
    # A folder with parts of the MedVLSM layout is read as one, so that what is missing of it is named.
    if not root.is_dir() or (root / "anns").is_dir() or (root / "masks").is_dir():
        return Source("medvlsm", str(root), root, (), split)
    coco = sorted((root / "annotations").glob(f"{FILE_PREFIX}*.json"))
    if coco:
        files = [file for file in coco if _is_of_split(file.stem.removeprefix(FILE_PREFIX), split)]
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1].name} are both {split}; name one by --train_annotations or so")
        # The publisher of COCO itself packs the folders of images (train2017/) beside annotations/.
        images = root / "images" if (root / "images").is_dir() else root
        return Source("coco", str(files[0]), images, tuple(files), split) if files else None
    folders = [root / name for name in SPLIT_NAMES[split] if (root / name).is_dir()]
    if folders:
        return _source_of_folder(folders[0], "--data_dir", split)
    shards = [file for file in _shards_of(root) if _is_of_split(file.stem, split)]
    if shards:
        return _shards(shards, split)
    known = any((root / name).is_dir() for names in SPLIT_NAMES.values() for name in names) or _shards_of(root)
    if not known:
        raise InputError(
            f"{root} holds none of anns/ (MedVLSM), annotations/instances_*.json (COCO), train/{METADATA}, and no "
            "Parquet or WebDataset shards (--data_dir)"
        )
    return None


def _source_of_folder(folder: Path, flag: str, split: str) -> Source:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder ({flag})")
    _check_readable(folder)
    if (folder / METADATA).exists():
        return Source("imagefolder", str(folder / METADATA), folder, (), split)
    if (folder / ROBOFLOW).exists():
        return Source("coco", str(folder / ROBOFLOW), folder, (folder / ROBOFLOW,), split)
    shards = _shards_of(folder)
    if not shards:
        table = folder / "metadata.csv"
        hint = f"; save {table.name} as {METADATA}" if table.exists() else ""
        raise InputError(
            f"{folder} holds none of {METADATA}, {ROBOFLOW}, Parquet and WebDataset (.tar) shards ({flag}){hint}"
        )
    return _shards(shards, split)


def _check_readable(folder: Path) -> None:
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder} cannot be read: permission denied; ask for access, or copy the data")


def _shards_of(root: Path) -> list[Path]:
    # Data sets downloaded from the Hub have their shards in data/.
    return sorted(file for place in (root, root / "data") for file in place.glob("*") if file.suffix in BUILDERS)


def _shards(files: list[Path], split: str) -> Source:
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise InputError(f"{files[0].parent} holds shards of both {' and '.join(kinds)}; keep one kind")
    return Source("shards", str(files[0].parent), files[0].parent, tuple(files), split)


def _is_of_split(stem: str, split: str) -> bool:
    return any(stem.startswith(name) and not stem[len(name) :][:1].isalpha() for name in SPLIT_NAMES[split])
