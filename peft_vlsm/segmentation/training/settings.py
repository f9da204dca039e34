"""The settings of a fine-tuning run: flags as users of Hugging Face's scripts know them, with the paper's defaults."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from peft_vlsm.segmentation.arguments import option
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.arguments import DataArguments
from peft_vlsm.segmentation.training.checkpoints import is_checkpoint, list_checkpoints, own_checkpoints
from peft_vlsm.segmentation.training.methods import ADAPTERS, OURS
from peft_vlsm.segmentation.training.tracking import holds_a_begun_run

PLATEAU = "reduce_lr_on_plateau"
# What a resumed run may have otherwise than before: nothing of it changes what the steps compute.
FREE_SETTINGS = (
    "output_dir overwrite_output_dir num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit "
    "resume_from_checkpoint per_device_train_batch_size gradient_accumulation_steps dataloader_num_workers "
    "with_tracking report_to push_to_hub hub_model_id hub_private_repo"
).split()


@dataclass
class FinetuneArguments(DataArguments):
    """
    What `examples/finetune.py` takes; each field's `help` says what it means.

    Raises:
        InputError: a value is not allowed, or does nothing beside the others. Names the flag.
    """

    output_dir: str = field(kw_only=True, metadata={"help": "Folder for the results; must be new or empty."})
    model_name_or_path: str = option("CIDAS/clipseg-rd64-refined", "The base model: a folder or a name on the Hub.")
    method: Literal["dense", "shallow", "lora", "ia3", "decoder", "full"] = option("dense", "What trains.")
    variant: str | None = option(None, "Where adapters stand: V (vision), L (text), C (conditional); VL if not given.")
    adapter_dim: int | None = option(None, "Adapter width: 64 for dense, 512 for shallow; for lora the rank, 16.")
    init_weights: Literal["paper", "True"] | None = option(
        None, "How adapters start: paper (nn.Linear's own, if not given), or True (the output is unchanged at first)."
    )
    train_decoder: bool = option(False, "Train the decoder along with the adapters.")
    image_size: int | None = option(None, "Side of the square images in pixels; the processor's own if not given.")
    num_train_epochs: int = option(200, "At most so many epochs; early stopping ends sooner.")
    max_train_steps: int | None = option(None, "At most so many optimizer steps; replaces num_train_epochs.")
    per_device_train_batch_size: int = option(32, "Images a batch and process.")
    per_device_eval_batch_size: int = option(32, "Images a batch and process in evaluation.")
    gradient_accumulation_steps: int = option(1, "Batches an optimizer step.")
    learning_rate: float | None = option(None, "1e-3, for shallow 3e-4, if not given.")
    weight_decay: float = option(1e-3, "AdamW's.")
    max_grad_norm: float = option(0.5, "Gradients are clipped to this norm.")
    lr_scheduler_type: Literal[
        "reduce_lr_on_plateau",
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
    ] = option(PLATEAU, "What the learning rate follows: the validation loss, as in the paper, or the steps.")
    num_warmup_steps: int = option(0, "Optimizer steps in which the learning rate rises from 0.")
    validation_steps: int | None = option(
        None, "With streaming: optimizer steps between validations, which then count as epochs; 100 if not given."
    )
    early_stopping_patience: int = option(20, "Stop after so many epochs without a better validation Dice; 0: never.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "What accelerate launch says, if not given; else fp16, as in the paper, on a GPU and no on a CPU."
    )
    gradient_checkpointing: bool = option(False, "Take less memory and more time: compute activations twice.")
    dataloader_num_workers: int = option(0, "Processes that read images ahead, for each process.")
    seed: int = option(42, "Of new weights, the order of images, the choice of prompts and augmentation.")
    checkpointing_steps: str = option("epoch", "Write a checkpoint every so many optimizer steps; or epoch, or no.")
    checkpoints_total_limit: int = option(2, "Keep so many checkpoints, the newest; 0: all.")
    resume_from_checkpoint: str | None = option(None, "A checkpoint's folder, or latest: the newest of output_dir.")
    with_tracking: bool = option(False, "Tell trackers too what log.jsonl gets.")
    report_to: str | None = option(None, "With with_tracking: tensorboard (if not given), wandb, trackio, or several.")
    push_to_hub: bool = option(False, "Publish the results on the Hub when they are done.")
    hub_model_id: str | None = option(None, "With push_to_hub: the repository; output_dir's name if not given.")
    hub_private_repo: bool = option(False, "With push_to_hub: make the repository private.")
    overwrite_output_dir: bool = option(False, "Replace the results that output_dir holds.")

    def __post_init__(self):
        self.check_data()
        for name in ("adapter_dim", "image_size", "learning_rate", "max_train_steps", "validation_steps"):
            self._check(name, getattr(self, name) is None or getattr(self, name) > 0, "must be above 0")
        for name in ("num_train_epochs", "gradient_accumulation_steps", "max_grad_norm"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("learning_rate", "weight_decay"):
            self._check(name, getattr(self, name) is None or math.isfinite(getattr(self, name)), "must be finite")
        for name in ("weight_decay", "num_warmup_steps", "early_stopping_patience", "dataloader_num_workers"):
            self._check(name, getattr(self, name) >= 0, "must not be negative")
        self._check("checkpoints_total_limit", self.checkpoints_total_limit >= 0, "must not be negative")
        self._check("streaming", not self.streaming or self.max_train_steps is not None, "needs --max_train_steps")
        self._check("validation_steps", self.validation_steps is None or self.streaming, "needs --streaming")
        idle = self.lr_scheduler_type in (PLATEAU, "constant") and self.num_warmup_steps > 0
        problem = f"does nothing with --lr_scheduler_type {self.lr_scheduler_type}; give constant_with_warmup, say"
        self._check("num_warmup_steps", not idle, problem)
        self._check("seed", 0 <= self.seed < 2**32, "must lie between 0 and 4294967295")
        for name in ("variant", "adapter_dim", "train_decoder", "init_weights"):
            methods = OURS if name == "init_weights" else ADAPTERS
            methods = [method for method in methods if (name, method) != ("adapter_dim", "ia3")]
            idle = self.method not in methods and getattr(self, name) not in (None, False)
            self._check(name, not idle, f"does nothing with --method {self.method}; leave it out")
        every = self.checkpointing_steps
        good = every in ("epoch", "no") or (every.isascii() and every.isdigit() and int(every) > 0)
        self._check("checkpointing_steps", good, "must be epoch, no, or a number above 0")
        self._check("report_to", self.with_tracking or self.report_to is None, "does nothing without --with_tracking")
        for name in ("hub_model_id", "hub_private_repo"):
            idle = not self.push_to_hub and getattr(self, name) not in (None, False)
            self._check(name, not idle, "does nothing without --push_to_hub")
        self._check_output()
        if self.init_weights is None and self.method in OURS:
            self.init_weights = "paper"
        if self.learning_rate is None:
            self.learning_rate = 3e-4 if self.method == "shallow" else 1e-3

    def _check_output(self):
        output = Path(self.output_dir)
        self._check("output_dir", not output.exists() or output.is_dir(), "is a file; name a folder")
        empty = not output.exists() or not any(output.iterdir())
        resumed = self.resume_from_checkpoint is not None and not empty and self._goes_on(output)
        problem = "is not empty; name another, or add --overwrite_output_dir"
        if output.is_dir() and list_checkpoints(output):
            problem += ", or go on with --resume_from_checkpoint latest"
        self._check("output_dir", empty or resumed or self.overwrite_output_dir, problem)
        for name in ("data_dir", "model_name_or_path"):
            same = getattr(self, name) is not None and output.resolve() == Path(getattr(self, name)).resolve()
            self._check("output_dir", not same, f"is --{name}; name another folder")

    def _goes_on(self, output: Path) -> bool:
        wanted = Path(str(self.resume_from_checkpoint))
        if str(wanted) != "latest" and wanted.resolve().parent != output.resolve():
            # What is no checkpoint is refused when it is read.
            return not is_checkpoint(wanted)
        # A run killed at its very end has written its results: resuming writes the same ones again.
        return bool(own_checkpoints(output)) or (
            holds_a_begun_run(output) and not (output / "all_results.json").exists()
        )

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")
