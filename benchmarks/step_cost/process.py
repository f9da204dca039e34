"""
Each measurement in a process of its own.

All of them come from one that has the libraries loaded and no model (Python's fork server): they start alike, at once.
"""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from peft_vlsm.segmentation.errors import InputError

from .measure import Case, Measurement, measure
from .settings import Arguments

PRELOADED = [
    "peft_vlsm.segmentation.training.methods",
    "peft_vlsm.segmentation.prediction.embedding_reuse",
    "transformers.models.clipseg.modeling_clipseg",
    "transformers.models.sam3.modeling_sam3",
]
OUT_OF_MEMORY = "memory ran out: lower --per_device_train_batch_size or --image_size, or leave methods out"


def measure_in_process(case: Case, args: Arguments, went_on: Callable[[], object]) -> Measurement:
    """
    Measures in a process of its own.

    Args:
        case ([`Case`]): what.
        args ([`Arguments`]): how.
        went_on (`Callable`): is called after each of `case.passes(args)` passes.

    Raises:
        InputError: what was asked for cannot be measured, or memory ran out.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(sender, case, args), daemon=True)
    process.start()
    sender.close()
    message: Measurement | InputError | None = None
    try:
        while message is None:
            message = receiver.recv()
            if message is None:
                went_on()
    except EOFError:
        process.join()
        # Linux kills what takes the machine's last memory.
        if process.exitcode == -9:
            raise InputError(f"{case.method}: {OUT_OF_MEMORY}") from None
        raise RuntimeError(f"measuring {case} ended with {process.exitcode}; what it printed says why") from None
    finally:
        if message is None:
            process.terminate()
        process.join()
    if isinstance(message, InputError):
        raise message
    assert message is not None
    return message


def _measure_and_send(sender: Connection, case: Case, args: Arguments) -> None:
    # Ctrl-C in a terminal reaches every process; the first one decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sender.send(measure(case, args, lambda: sender.send(None)))
    except InputError as error:
        sender.send(error)
    except (torch.OutOfMemoryError, MemoryError):
        sender.send(InputError(f"{case.method}: {OUT_OF_MEMORY}"))
