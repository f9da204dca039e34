"""Two gloo processes train what one trains: DistributedDataParallel without unused parameters, and fully_shard."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import FAMILIES
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "distributed_worker.py"
CASES = [
    ("clipseg", "dense", "VLC"),
    ("clipseg", "shallow", "VLC"),
    ("sam3", "dense", "VLC"),
    ("sam3", "shallow", "VC"),
]


def train(case, strategy, folder):
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *case, strategy, str(rank), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(1 if strategy == "alone" else 2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)[-3000:]
    return load_file(folder / f"{strategy}.safetensors")


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_train_what_one_trains(case, tmp_path):
    next(family for family in FAMILIES if family.name == case[0]).build()  # skips where transformers lacks the model
    alone = train(case, "alone", tmp_path)
    assert alone
    for strategy in ("ddp", "fsdp"):
        both = train(case, strategy, tmp_path)
        assert both.keys() == alone.keys()
        for name, value in both.items():
            torch.testing.assert_close(
                value, alone[name], atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
