"""What is wrong is one line and status 2; where memory runs out, the line names the flags that help."""

import errno
import os

import pytest
import torch

from peft_vlsm.segmentation.errors import InputError, exit_on_input_error, explain_out_of_memory


def test_one_line_and_status_2(capsys):
    @exit_on_input_error
    def main():
        raise InputError("the file\nscan.png  is broken")

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and capsys.readouterr().err == "error: the file scan.png is broken\n"


def cpu_runs_out():
    torch.empty(1 << 60, dtype=torch.uint8)


def gpu_runs_out():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("fails", [cpu_runs_out, gpu_runs_out])
def test_out_of_memory_names_the_flags_that_help(fails):
    with pytest.raises(InputError, match="out of memory: lower --per_device_train_batch_size .*--image_size"):
        with explain_out_of_memory():
            fails()


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="size of tensor"), explain_out_of_memory():
        torch.ones(2) + torch.ones(3)


DISKS = {
    "full": (errno.ENOSPC, "out/a.png cannot be written: No space left on device; free space there, or name another"),
    "closed": (
        errno.EACCES,
        "out/a.png cannot be read or written: Permission denied; change its permissions, or name another folder",
    ),
}


@pytest.mark.parametrize("number, line", DISKS.values(), ids=DISKS)
def test_disks_that_refuse_are_one_line(capsys, number, line):
    @exit_on_input_error
    def main():
        raise OSError(number, os.strerror(number), "out/a.png")

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {line}")
