"""A folder of results appears whole or not at all: it is written beside its place and renamed into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_vlsm.segmentation.errors import InputError


@contextmanager
def write_beside(folder: Path) -> Iterator[Path]:
    """
    Gives a fresh folder beside `folder` to write into; it takes `folder`'s name when the block ends without an error.

    Args:
        folder (`Path`): where the results shall be: nothing yet, or an empty folder. Missing parents are made.

    Yields:
        `Path`: the folder to write into. It is removed, and `folder` left as it was, where the block raises.

    Raises:
        [`InputError`]: `folder` is a file, the current folder or a folder with something in it, or cannot be written.
    """
    try:
        folder = folder.resolve()
        if folder == Path.cwd() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise InputError(f"{folder} exists already and is not overwritten: name a new folder")
        staging = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        staging.mkdir(parents=True)
        try:
            yield staging
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder} was not written: {error}; mend that or name another folder") from error
