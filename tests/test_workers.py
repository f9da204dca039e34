"""Workers outlive the SIGTERM that a scheduler sends to all, and end by the one that the run itself sends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from peft_vlsm.segmentation.data.workers import outlive_sigterm
from peft_vlsm.segmentation.training.termination import termination

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells who sent a signal")


class Slow(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, place):
        time.sleep(0.05)
        return place


def as_a_scheduler(children):
    subprocess.run(["kill", "-TERM", *[str(child.pid) for child in children]], check=True)


def test_a_schedulers_sigterm_is_outlived_from_the_first_moment():
    """Before the worker's own function ran, too: the mask is that of the process that forked it."""
    with termination() as came:
        batches = iter(DataLoader(Slow(), num_workers=2, worker_init_fn=outlive_sigterm))
        as_a_scheduler(multiprocessing.active_children())
        first = next(batches)
        as_a_scheduler(multiprocessing.active_children())
        assert [first.item(), *(batch.item() for batch in batches)] == list(range(8))
    assert not came and not multiprocessing.active_children()


def test_the_run_ends_its_workers():
    batches = iter(DataLoader(Slow(), num_workers=2, worker_init_fn=outlive_sigterm))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(timeout=20)
    assert not multiprocessing.active_children()
