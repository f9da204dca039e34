"""The processes of a `DataLoader`, which read images ahead."""

import os
import signal
import sys
import threading


def outlive_sigterm(worker: int) -> None:
    """
    Lets a worker of a `DataLoader` (its `worker_init_fn`) go on while the run saves itself.

    Schedulers send SIGTERM to every process of a run; one that lost a worker could not reach the step's end. The run's
    own SIGTERM still ends the worker. Linux alone tells one from the other.

    Args:
        worker (`int`): its number.
    """
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
