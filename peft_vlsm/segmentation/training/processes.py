"""The end of a run over several processes."""

import time

from accelerate import Accelerator

# torch 2.13 ends gloo's threads while it holds Python's lock, which such a thread wants for its last result: the
# process then hangs or aborts. A thread that has nothing left to do for half a second wants nothing.
LAST_RESULT_SECONDS = 0.5


def end_processes(accelerator: Accelerator) -> None:
    """
    Ends trackers and the group of processes, once every process has come here.

    Args:
        accelerator ([`~accelerate.Accelerator`]): of the run.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        time.sleep(LAST_RESULT_SECONDS)
    accelerator.end_training()
