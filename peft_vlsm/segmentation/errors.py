"""Bad input ends in one line that names the file or flag and what to do, never in a traceback."""

import errno
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch


class InputError(ValueError):
    """What a user gave (a file, a folder, a flag) cannot be used; the message names it and says what to do."""


def exit_on_input_error(main: Callable[[], None]) -> Callable[[], None]:
    """
    Wraps the `main` of a script: an [`InputError`] becomes one line on stderr and exit status 2, and so does a disk
    that is full or read-only, and a file that the user may not open.

    Args:
        main (`Callable[[], None]`): the script's entry point.

    Returns:
        `Callable[[], None]`: the same entry point, which raises `SystemExit(2)` where `main` raised one of these.
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except InputError as error:
            _end(str(error))
        except OSError as error:
            if error.errno not in _DISK_FAILURES:
                raise
            place = "the output" if error.filename is None else error.filename
            problem, cure = _DISK_FAILURES[error.errno]
            _end(f"{place} {problem}: {error.strerror}; {cure}, or name another folder")

    return guarded


_FULL = ("cannot be written", "free space there")
_CLOSED = ("cannot be read or written", "change its permissions")
_DISK_FAILURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _CLOSED),
}


def _end(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    # wandb learns of a failed run from sys.exit alone.
    sys.exit(2)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """
    Where memory runs out, names the flags that help.

    Raises:
        InputError: in place of torch's own error, on a GPU or a CPU.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(_OUT_OF_MEMORY) from error
    except RuntimeError as error:
        # What torch raises where the CPU's memory runs out.
        if "can't allocate memory" not in str(error):
            raise
        raise InputError(_OUT_OF_MEMORY) from error


_OUT_OF_MEMORY = (
    "out of memory: lower --per_device_train_batch_size (and raise --gradient_accumulation_steps by as much), "
    "--per_device_eval_batch_size or --image_size, or train with --gradient_checkpointing, or in 16 bits "
    "(--mixed_precision bf16 or fp16)"
)
