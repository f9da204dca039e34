"""FSDP2 and DeepSpeed's ZeRO 2 as `examples/configs` sets them: two processes train what one trains, and resume."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate.utils import DistributedType
from builders import EXAMPLES, forget_accelerator, load_example, run_example, write_dataset
from safetensors.torch import load_file
from segmenters import write_sam3_model

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import load_finetuned
from peft_vlsm.segmentation.training.sharding import _weights_only, check_launch

LAUNCHER = Path(__file__).parent / "launch_on_cpu.py"
CASES = {
    "clipseg dense": ("clipseg", "--adapter_dim", 4, "--variant", "VLC"),
    "clipseg lora and decoder": ("clipseg", "--method", "lora", "--adapter_dim", 2, "--train_decoder", "True"),
    "clipseg decoder": ("clipseg", "--method", "decoder"),
    "sam3 dense": ("sam3", "--adapter_dim", 4, "--variant", "VLC"),
    "sam3 full": ("sam3", "--method", "full"),
}
CONFIGS = ["fsdp2", "zero2"]
LIMIT = ("--checkpoints_total_limit", 4)
SAME = ("--num_train_epochs", 2, "--weight_decay", 0, "--mixed_precision", "no", "--gradient_accumulation_steps", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven rows in steps of four: the last step has three, in shares of one."""
    return write_dataset(tmp_path_factory.mktemp("data") / "data", {"train": 7, "val": 3, "test": 3})


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    return {"clipseg": base, "sam3": write_sam3_model(tmp_path_factory.mktemp("models") / "sam3")}


@pytest.fixture
def places(models, data):
    return lambda model, out: ("--model_name_or_path", models[model], "--data_dir", data, "--output_dir", out)


def launch(config, *flags):
    if config == "zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed here: make test-deepspeed")
    file = EXAMPLES / "configs" / f"{config}.yaml"
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", "--config_file", file]
    command += ["--main_process_port", "0", LAUNCHER, EXAMPLES / "finetune.py", *flags]
    environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **environment}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def weights_of(folder):
    (file,) = [file for file in folder.glob("*.safetensors") if file.name != "best.safetensors"]
    return load_file(file)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_processes_train_what_one_trains(places, tmp_path, case, config):
    model, *flags = case
    launch(config, *places(model, tmp_path / "2"), *flags, *SAME, "--per_device_train_batch_size", 1)
    forget_accelerator()
    one = (*places(model, tmp_path / "1"), *flags, *SAME, "--per_device_train_batch_size", 2)
    run_example(load_example("finetune"), *one)
    for folder in (".", "step_4"):
        alone, both = (weights_of(tmp_path / name / folder) for name in "12")
        assert alone.keys() == both.keys()
        for name, weight in alone.items():
            # Below a norm of 1: where the gradient is all but zero, Adam divides rounding errors by themselves.
            assert (both[name] - weight).norm() <= 1e-3 * max(1, weight.norm()), name
    results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in "12"]
    for name in ("trainable_parameters", "total_parameters", "train_steps"):
        assert results[0][name] == results[1][name]
    assert results[0]["test_dice"] == pytest.approx(results[1]["test_dice"], abs=1e-3)
    load_finetuned(tmp_path / "2")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_run_that_stopped_resumes_to_the_same_bytes(places, tmp_path, config):
    """Step 3 is in the midst of an epoch; the run goes on in another folder."""
    flags = ("--adapter_dim", 4, "--per_device_train_batch_size", 2, "--num_train_epochs", 2)
    launch(config, *places("clipseg", tmp_path / "whole"), *flags, "--checkpointing_steps", 1, *LIMIT)
    step = tmp_path / "whole" / "step_3"
    resume = ("--resume_from_checkpoint", step, "--checkpointing_steps", 1)
    done = launch(config, *places("clipseg", tmp_path / "out"), *flags, *resume)
    assert f"going on from {step}, step 3" in done.stdout
    for folder in (".", "step_4"):
        whole, resumed = (tmp_path / name / folder / "adapter_model.safetensors" for name in ("whole", "out"))
        assert whole.read_bytes() == resumed.read_bytes()
    # The base model is not among what a checkpoint holds.
    base = 4 * sum(weight.numel() for weight in load_finetuned(tmp_path / "out")[0].parameters())
    assert max(file.stat().st_size for file in (tmp_path / "out" / "step_4").rglob("*")) < base / 2


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_deepspeeds_files_are_read_without_running_what_they_hold(tmp_path, monkeypatch):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed here: make test-deepspeed")
    monkeypatch.chdir(tmp_path)
    torch.save({"optimizer_state_dict": Harmful()}, "optim_states.pt")
    with _weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load("optim_states.pt", weights_only=False)  # as DeepSpeed does
    assert not Path("harmed").exists()


SETTINGS = {
    "fsdp 1": (DistributedType.FSDP, {"fsdp_version": 1, "cpu_ram_efficient_loading": False}, "fsdp_version 1 of"),
    "fsdp loads on one process": (
        DistributedType.FSDP,
        {"fsdp_version": 2, "cpu_ram_efficient_loading": True},
        "fsdp_cpu_ram_efficient_loading true of accelerate's configuration must be false",
    ),
    "zero 3": (
        DistributedType.DEEPSPEED,
        {"zero_stage": 3},
        "zero_stage 3 of accelerate's configuration must be 1",
    ),
}


@pytest.mark.parametrize("kind, plugin, problem", SETTINGS.values(), ids=SETTINGS)
def test_other_settings_are_refused(kind, plugin, problem):
    """accelerate makes an FSDP 1 plugin on GPUs alone: what `check_launch` reads stands in for it."""
    plugin = SimpleNamespace(**plugin)
    state = SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=plugin)
    with pytest.raises(InputError, match=problem):
        check_launch(cast(Any, SimpleNamespace(num_processes=2, distributed_type=kind, state=state)))


def test_processes_that_do_not_know_of_each_other_are_refused(places, tmp_path):
    """Without a GPU, accelerate runs each process of a launch by itself: both would write one output folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [EXAMPLES / "finetune.py", *places("clipseg", tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)
    assert "error: 2 processes were launched that do not know of each other" in done.stderr
    assert done.returncode and not (tmp_path / "out").exists()
