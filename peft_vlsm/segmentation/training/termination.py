"""SIGTERM, by which schedulers end a run: it is noticed between steps, so that the run can save itself first."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM


class Termination:
    """True once SIGTERM came."""

    def __init__(self) -> None:
        self.received = False

    def note(self, *signal_and_frame: object) -> None:
        self.received = True

    def __bool__(self) -> bool:
        # Where every thread has it blocked it waits instead of calling `note`.
        return self.received or (sys.platform == "linux" and signal.SIGTERM in signal.sigpending())


@contextmanager
def termination() -> Iterator[Termination]:
    """
    Gives a [`Termination`], in place of dying of SIGTERM.

    Meanwhile this thread has SIGTERM blocked, as have the workers that are forked from it: they would else die of one
    that comes before [`outlive_sigterm`] ran.
    """
    came = Termination()
    before = signal.signal(signal.SIGTERM, came.note)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if sys.platform == "linux" else set()
    try:
        yield came
    finally:
        if sys.platform == "linux":
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, before)
