"""A script's arguments: one dataclass, filled from flags or from one file; what is wrong is one line, not a page."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_origin

import yaml
from transformers import HfArgumentParser

from peft_vlsm.segmentation.errors import InputError

Arguments = TypeVar("Arguments")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines, and names every default."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises [`InputError`] where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


class _DataclassParser(OneLineParser, HfArgumentParser):
    pass


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of arguments: its default, and what `--help` says about it."""
    return dataclasses.field(default=default, metadata={"help": help})


def parse_arguments(cls: type[Arguments], argv: list[str] | None = None, description: str | None = None) -> Arguments:
    """
    Fills a script's dataclass of arguments.

    Args:
        cls (`type`): a dataclass; its fields are the flags, their `metadata["help"]` the help.
        argv (`list[str]`, *optional*): flags, or the name of one `.yaml`, `.yml` or `.json` file whose keys are the
            flags' names. Default: the command line's.
        description (`str`, *optional*): what `--help` begins with.

    Returns:
        an instance of `cls`.

    Raises:
        InputError: a flag or key is unknown, missing or has a wrong value; the file cannot be read.
    """
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) == 1 and Path(argv[0]).suffix in (".yaml", ".yml", ".json"):
        argv = _flags_of_file(Path(argv[0]), cls)
    parser = _DataclassParser(
        cast(Any, cls), description=description, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    arguments, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; see {parser.prog} --help")
    return arguments


def _flags_of_file(file: Path, cls: type) -> list[str]:
    try:
        # Every JSON file is a YAML file, too.
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML or JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold flags and their values, such as `data_dir: DIR`")
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = [str(key) for key in values if key not in names]
    if unknown:
        raise InputError(f"{file} has unknown keys: {', '.join(unknown)}; allowed are {', '.join(names)}")
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    return [flag for key, value in values.items() for flag in _flags_of_value(key, value, types[key])]


def _flags_of_value(key: str, value: Any, kind: Any) -> list[str]:
    """YAML reads 1e-3 as a string and no as false: the flags' own types decide, whatever the file's are."""
    if value is None:
        return []
    if isinstance(value, list):
        is_list = get_origin(kind) is list
        return [f"--{key}", *map(str, value)] if is_list else [f"--{key}={','.join(map(str, value))}"]
    return [f"--{key}={'no' if value is False and kind is not bool else value}"]
