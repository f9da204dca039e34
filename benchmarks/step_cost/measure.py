"""
One measurement of one method: seconds of its training steps and predictions, peak memory, sizes.

Peak memory is what torch allocated on a GPU, and on a CPU what the system counts for the whole process (`ru_maxrss`),
which never falls: each measurement needs a process of its own.
"""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from transformers.utils import logging as transformers_logging

from peft_vlsm.architectures import Architecture
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import save_weights
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss
from peft_vlsm.segmentation.prediction.embedding_reuse import EmbeddingReuse
from peft_vlsm.segmentation.training.methods import (
    OURS,
    Method,
    checkpoint_gradients,
    freeze_what_the_loss_misses,
    make_trainable,
    resolve,
)

from .machine import describe_machine
from .models import build_model, make_batch, read_config
from .settings import Arguments

FROZEN = "frozen"
# finetune.py's own settings.
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, 1e-3, 0.5


@dataclass(frozen=True)
class Case:
    """
    What is measured.

    Args:
        method (`str`): one of `METHODS`, or `"frozen"`: the base model, which predicts alone.
        gradient_checkpointing (`bool`, defaults to `False`): training alone is measured then.
    """

    method: str
    gradient_checkpointing: bool = False

    def passes(self, args: Arguments) -> int:
        """How often a measurement tells that it went on."""
        kinds = 3 if self.method == FROZEN else 1 if self.gradient_checkpointing else 2
        return kinds * (args.warmup_steps + args.steps)


@dataclass
class Timing:
    """
    Passes of one kind, in their order.

    Args:
        seconds (`list[float]`): how long each took.
        processor_seconds (`list[float]`): how long it computed on the CPU, over all threads: other processes on the
            machine do not count.
    """

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)


@dataclass
class Measurement:
    """
    What one process found in one turn.

    Args:
        variant, adapter_dim: as [`resolve`] filled them in.
        training ([`Timing`]): of steps.
        peak_memory_bytes (`int`): of training.
        libraries_bytes (`int`): on a CPU, what the process had before it built its model; else 0.
        trainable_parameters, total_parameters (`int`): of the model, adapters included.
        saved_bytes (`int`): of the weights' file that training leaves.
        prediction ([`Timing`]): of batches without gradients, in float32.
        every_pair, reuse ([`Timing`]): of several prompts on one image, without reuse of embeddings and with it.
        machine (`dict`): what it ran on.
    """

    variant: str | None = None
    adapter_dim: int | None = None
    training: Timing = field(default_factory=Timing)
    peak_memory_bytes: int = 0
    libraries_bytes: int = 0
    trainable_parameters: int = 0
    total_parameters: int = 0
    saved_bytes: int = 0
    prediction: Timing = field(default_factory=Timing)
    every_pair: Timing = field(default_factory=Timing)
    reuse: Timing = field(default_factory=Timing)
    machine: dict[str, Any] = field(default_factory=dict)


def measure(case: Case, args: Arguments, went_on: Callable[[], object]) -> Measurement:
    """
    Builds the model and measures.

    Args:
        case ([`Case`]): what.
        args ([`Arguments`]): how.
        went_on (`Callable`): is called after each of `case.passes(args)` passes.

    Raises:
        InputError: the model, the method or the precision cannot be had.
    """
    transformers_logging.disable_progress_bar()
    libraries = _peak_of_process()
    accelerator = _make_accelerator(args)
    device = accelerator.device
    family, config, side = read_config(args)
    model = build_model(family, config, args.seed)
    rows, tokens = args.per_device_train_batch_size, args.prompt_tokens
    batch = make_batch(config, side, rows, tokens, args.seed, device)
    found = Measurement(machine=describe_machine(device) | {"mixed_precision": str(accelerator.mixed_precision)})
    found.libraries_bytes = 0 if device.type == "cuda" else libraries

    def timed(run: Callable[[], object]) -> Timing:
        for _ in range(args.warmup_steps):
            run()
            went_on()
        timing = Timing()
        for _ in range(args.steps):
            _wait_for(device)
            started, computed = time.perf_counter(), time.process_time()
            run()
            _wait_for(device)
            timing.seconds.append(time.perf_counter() - started)
            timing.processor_seconds.append(time.process_time() - computed)
            went_on()
        return timing

    if case.method == FROZEN:
        model.to(device).requires_grad_(False)
        found.total_parameters = sum(weight.numel() for weight in model.parameters())
    else:
        model = _train(model, family, case, batch, accelerator, found, timed)
    if not case.gradient_checkpointing:
        model.eval()
        with torch.no_grad():
            found.prediction = timed(lambda: run_segmenter(model, batch))
    if case.method == FROZEN:
        prompts = make_batch(config, side, args.prompts, tokens, args.seed, device)
        prompts["pixel_values"] = prompts["pixel_values"][:1].expand(args.prompts, -1, -1, -1)
        found.every_pair = timed(lambda: _predict_every_pair(model, prompts, rows))
        found.reuse = timed(lambda: _predict_with_reuse(model, prompts, rows))
    return found


def _make_accelerator(args: Arguments) -> Accelerator:
    precision = args.mixed_precision or ("fp16" if str(PartialState().device).startswith("cuda") else "no")
    try:
        return Accelerator(mixed_precision=precision)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--mixed_precision {precision}: {error}") from error


def method_of(name: str, family: Architecture) -> Method:
    """The method as finetune.py has it, without those of the letters V and L that the family cannot have."""
    variant = None
    if name in OURS:
        variant = "".join(letter for letter in "VL" if f"{name} {letter}" not in family.reasons)
    return resolve(Method(name, variant=variant))


def _train(
    model: Any,
    family: Architecture,
    case: Case,
    batch: dict[str, torch.Tensor],
    accelerator: Accelerator,
    found: Measurement,
    timed: Callable[[Callable[[], object]], Timing],
) -> Any:
    """Trains as finetune.py does, writes what was found, and returns the model as prediction has it."""
    method = method_of(case.method, family)
    found.variant, found.adapter_dim = method.variant, method.adapter_dim
    model = make_trainable(model, method).to(accelerator.device)
    if case.gradient_checkpointing:
        checkpoint_gradients(model)
    probe = {name: value[:1] for name, value in batch.items()}
    freeze_what_the_loss_misses(model, lambda: segmentation_loss(run_segmenter(model, probe), probe["masks"]).sum())
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    found.trainable_parameters = sum(weight.numel() for weight in trainable)
    found.total_parameters = sum(weight.numel() for weight in model.parameters())
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()

    def step() -> None:
        loss = segmentation_loss(run_segmenter(model, batch), batch["masks"]).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trainable, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    on_gpu = accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found.training = timed(step)
    found.peak_memory_bytes = torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process()
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    with TemporaryDirectory() as folder:
        save_weights(model, Path(folder))
        found.saved_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return model


def _predict_every_pair(model: torch.nn.Module, pairs: dict[str, torch.Tensor], rows: int) -> None:
    with torch.no_grad():
        for start in range(0, len(pairs["input_ids"]), rows):
            run_segmenter(model, {name: value[start : start + rows] for name, value in pairs.items()})


def _predict_with_reuse(model: torch.nn.Module, pairs: dict[str, torch.Tensor], rows: int) -> None:
    with EmbeddingReuse(model) as reuse:
        for start in range(0, len(pairs["input_ids"]), rows):
            batch = {name: value[start : start + rows] for name, value in pairs.items()}
            prompts = range(start, start + len(batch["input_ids"]))
            reuse.run(batch, images=["image"] * len(prompts), prompts=prompts)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_of_process() -> int:
    # Linux counts it in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
