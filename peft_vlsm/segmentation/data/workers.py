"""The processes of a `DataLoader`, which read images ahead."""

import signal


def outlive_sigterm(worker: int) -> None:
    """
    Lets a worker of a `DataLoader` (its `worker_init_fn`) go on while the run saves itself.

    Schedulers send SIGTERM to every process of a run; one that lost a worker could not reach the step's end.

    Args:
        worker (`int`): its number.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
