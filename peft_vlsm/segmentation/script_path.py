"""The library `evaluate` under scripts whose folder holds an evaluate.py, as examples/ does."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def without_scripts_named(name: str) -> Iterator[None]:
    """
    Leaves out of Python's path, for the block, the folders in which a script would hide the library of its name.

    Python puts a script's own folder first on the path: `import evaluate` under `python examples/finetune.py` would
    find `examples/evaluate.py`.

    Args:
        name (`str`): the library's name.
    """
    path = list(sys.path)
    sys.path[:] = [folder for folder in path if not Path(folder, f"{name}.py").is_file()]
    try:
        yield
    finally:
        sys.path[:] = path
