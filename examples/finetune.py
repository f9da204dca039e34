"""Fine-tunes a text-prompted segmentation model on your own images: adapters, LoRA, IA3, the decoder, or all of it.

    python examples/finetune.py --data_dir DIR --output_dir OUT
    python examples/finetune.py --model_name_or_path facebook/sam3 --data_dir DIR --output_dir OUT
    accelerate launch --multi_gpu examples/finetune.py --data_dir DIR --output_dir OUT
    python examples/finetune.py settings.yaml

The defaults are the settings of the paper (VLSM-Adapter, arXiv 2405.06196). OUT holds

    adapter_config.json, adapter_model.safetensors    the best weights by validation Dice, from the first epoch on
    preprocessor_config.json, tokenizer.json, ...     the processor, as training used it
    step_N/                                           checkpoints, for --resume_from_checkpoint latest
    log.jsonl                                         what was measured, a line each time
    all_results.json, samples.png, curves.png         the end: figures, masks and curves; README.md is the model card
"""

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error, explain_out_of_memory
from peft_vlsm.segmentation.evaluation.validation import evaluate
from peft_vlsm.segmentation.models.finetuned import load_base, make_output_dir, save_finetuned, save_results
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss
from peft_vlsm.segmentation.publishing.model_card import write_model_card
from peft_vlsm.segmentation.publishing.upload import push_folder
from peft_vlsm.segmentation.sources.arguments import DataArguments
from peft_vlsm.segmentation.sources.open import Stream, has_split, load_rows, open_stream
from peft_vlsm.segmentation.sources.streaming import StreamingLoader, StreamingSegmentationDataset
from peft_vlsm.segmentation.training.batches import RowSteps, StepBatches, StreamSteps
from peft_vlsm.segmentation.training.checkpoints import (
    TERMINATED,
    Checkpoints,
    Progress,
    find_checkpoint,
    list_checkpoints,
    termination,
)
from peft_vlsm.segmentation.training.methods import (
    ADAPTERS,
    OURS,
    Method,
    freeze_what_the_loss_misses,
    make_trainable,
    resolve,
)
from peft_vlsm.segmentation.training.processes import end_processes
from peft_vlsm.segmentation.training.samples import draw_samples
from peft_vlsm.segmentation.training.tracking import JsonlTracker, draw_curves, log_picture, make_trackers, read_log

PLATEAU = "reduce_lr_on_plateau"
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 5
STOPPING_MIN_DELTA = 1e-4
VALIDATION_STEPS = 100
# What a resumed run may have otherwise than before: nothing of it changes what the steps compute.
FREE_SETTINGS = (
    "output_dir overwrite_output_dir num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit "
    "resume_from_checkpoint per_device_train_batch_size gradient_accumulation_steps dataloader_num_workers "
    "with_tracking report_to push_to_hub hub_model_id hub_private_repo"
).split()


@dataclass
class Arguments(DataArguments):
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
    lr_scheduler_type: Literal["reduce_lr_on_plateau", "constant", "constant_with_warmup", "linear", "cosine"] = (
        option(PLATEAU, "What the learning rate follows: the validation loss, as in the paper, or the steps.")
    )
    num_warmup_steps: int = option(0, "Optimizer steps in which the learning rate rises from 0.")
    validation_steps: int | None = option(
        None, "With streaming: optimizer steps between validations, which then count as epochs; 100 if not given."
    )
    early_stopping_patience: int = option(20, "Stop after so many epochs without a better validation Dice; 0: never.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "What accelerate launch says, if not given; else fp16, as in the paper, on a GPU and no on a CPU."
    )
    dataloader_num_workers: int = option(0, "Processes that read images ahead, for each process.")
    seed: int = option(42, "Of new weights, the order of images, the choice of prompts and augmentation.")
    checkpointing_steps: str = option("epoch", "Write a checkpoint every so many optimizer steps; or epoch, or no.")
    checkpoints_total_limit: int | None = option(2, "Keep so many checkpoints, the newest.")
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
        limit = self.checkpoints_total_limit
        self._check("checkpoints_total_limit", limit is None or limit > 0, "must be above 0")
        for name in ("num_train_epochs", "gradient_accumulation_steps", "max_grad_norm"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("learning_rate", "weight_decay"):
            self._check(name, getattr(self, name) is None or math.isfinite(getattr(self, name)), "must be finite")
        for name in ("weight_decay", "num_warmup_steps", "early_stopping_patience", "dataloader_num_workers"):
            self._check(name, getattr(self, name) >= 0, "must not be negative")
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
        good = every in ("epoch", "no") or (every.isdigit() and int(every) > 0)
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
        # A run killed at its very end has written its results: resuming writes the same ones again.
        goes_on = list_checkpoints(output) or not (output / "all_results.json").exists()
        resumed = self.resume_from_checkpoint is not None and goes_on
        problem = "is not empty; name another, or add --overwrite_output_dir"
        if output.is_dir() and list_checkpoints(output):
            problem += ", or go on with --resume_from_checkpoint latest"
        self._check("output_dir", empty or resumed or self.overwrite_output_dir, problem)
        for name in ("data_dir", "model_name_or_path"):
            same = getattr(self, name) is not None and output.resolve() == Path(getattr(self, name)).resolve()
            self._check("output_dir", not same, f"is --{name}; name another folder")

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")


def make_accelerator(args: Arguments, tracker: JsonlTracker) -> Accelerator:
    precision = args.mixed_precision
    if precision is None and "ACCELERATE_MIXED_PRECISION" not in os.environ and torch.cuda.is_available():
        precision = "fp16"
    trackers = make_trackers(args.with_tracking, args.report_to)
    try:
        return Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=precision,
            log_with=[tracker, *trackers],
            project_dir=args.output_dir,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--mixed_precision {precision}: {error}") from error


def make_batches(
    args: Arguments, stream: Stream | None, rows: dict, processor: Processor, accelerator: Accelerator
) -> RowSteps | StreamSteps:
    """This process's share of the training rows, step by step."""
    settings = {"prompt": args.prompt, "override_prompt": args.override_prompt, "augmentation": args.augmentation()}
    processes, process = accelerator.num_processes, accelerator.process_index
    batch_size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if stream is not None:
        places = {"rank": process, "world_size": processes}
        dataset = StreamingSegmentationDataset(stream, processor, args.seed, **settings, **places)
        loader = StreamingLoader(dataset, batch_size, args.dataloader_num_workers)
        return StreamSteps(loader, accumulation, processes, args.validation_steps or VALIDATION_STEPS)
    dataset = SegmentationDataset(rows["train"], processor, args.seed, **settings)
    sampler = StepBatches(len(dataset), batch_size, accumulation, processes, process, args.seed)
    return RowSteps(dataset, sampler, args.dataloader_num_workers)


def make_scheduler(optimizer: torch.optim.Optimizer, args: Arguments, max_steps: int) -> LRScheduler:
    """Steps with every epoch's validation loss (the paper's), or else with every optimizer step."""
    if args.lr_scheduler_type == PLATEAU:
        return ReduceLROnPlateau(optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)
    return get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, max_steps)


def clear_output(folder: Path) -> None:
    """With --overwrite_output_dir: an earlier run's checkpoints and pictures must not pass for this one's."""
    for old in (*list_checkpoints(folder), folder / "samples"):
        shutil.rmtree(old, ignore_errors=True)
    for name in ("log.jsonl", "curves.png"):
        (folder / name).unlink(missing_ok=True)


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__)
    output_dir = Path(args.output_dir)
    transformers_logging.disable_progress_bar()
    tracker = JsonlTracker(output_dir)
    accelerator = make_accelerator(args, tracker)
    main_process = accelerator.is_main_process
    set_seed(args.seed)

    # Everything that can be wrong with data, model and checkpoint shows here, before anything is written.
    splits = ["train", "val", *(["test"] if has_split(args, "test") else [])]
    stream = open_stream(args) if args.streaming else None
    rows = {split: load_rows(args, split, args.seed) for split in splits if stream is None or split != "train"}
    start = "paper" if args.init_weights == "paper" else True
    method = resolve(Method(args.method, args.variant, args.adapter_dim, start, args.train_decoder))
    args.variant, args.adapter_dim = method.variant, method.adapter_dim
    accelerator.print(f"loading {args.model_name_or_path}")
    model, processor = load_base(args.model_name_or_path, args.image_size)
    args.image_size = fit_processor(processor, model.config, args.image_size)
    choice = {"prompt": args.prompt, "override_prompt": args.override_prompt}
    train_batches = make_batches(args, stream, rows, processor, accelerator)
    eval_sets = {split: SegmentationDataset(rows[split], processor, **choice) for split in splits[1:]}
    model = make_trainable(model, method).to(accelerator.device)
    probe = send_to_device(eval_sets["val"].collate([eval_sets["val"][0]]), accelerator.device)
    missed = freeze_what_the_loss_misses(
        model, lambda: segmentation_loss(run_segmenter(model, probe), probe["masks"]).sum()
    )
    if missed:
        accelerator.print(f"{len(missed)} weights that reach no mask stay as they are, such as {missed[0]}")
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    eval_loaders = [
        DataLoader(
            dataset,
            batch_size=args.per_device_eval_batch_size,
            collate_fn=dataset.collate,
            num_workers=args.dataloader_num_workers,
        )
        for dataset in eval_sets.values()
    ]
    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    model, optimizer, *eval_loaders = accelerator.prepare(model, optimizer, *eval_loaders)
    loaders = dict(zip(eval_sets, eval_loaders, strict=True))
    bare_model = accelerator.unwrap_model(model)
    max_steps = args.max_train_steps or args.num_train_epochs * train_batches.steps
    scheduler = make_scheduler(optimizer, args, max_steps)
    plateau = isinstance(scheduler, ReduceLROnPlateau)

    progress, best_weights = Progress(), {}
    settings = {name: value for name, value in asdict(args).items() if name not in FREE_SETTINGS}
    settings["rows_per_step"] = train_batches.rows_per_step
    checkpoints = Checkpoints(output_dir, accelerator, bare_model, processor, settings, args.checkpoints_total_limit)
    if args.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
        if checkpoint is None:
            accelerator.print(f"there is no checkpoint in {output_dir} yet; starting from the beginning")
        else:
            progress, best_weights = checkpoints.load(checkpoint)
            scheduler.load_state_dict(progress.scheduler)
            accelerator.print(f"going on from {checkpoint}, step {progress.step}")
    if main_process:
        make_output_dir(output_dir)
        if progress.step == 0:
            clear_output(output_dir)
    accelerator.wait_for_everyone()
    tracker.resumed_step = progress.step
    accelerator.init_trackers("peft_vlsm", {name: value for name, value in asdict(args).items() if value is not None})

    started = time.monotonic()

    def save_checkpoint():
        nonlocal started
        progress.scheduler = scheduler.state_dict()
        progress.train_seconds, started = progress.train_seconds + time.monotonic() - started, time.monotonic()
        checkpoints.save(progress, best_weights)

    def is_done() -> bool:
        stopped = progress.epochs_without_gain >= args.early_stopping_patience > 0
        return stopped or (progress.step >= max_steps and progress.epoch_step == 0)

    shown = {"loss": "?", "val_dice": "?"}
    bar = tqdm(total=max_steps, initial=progress.step, unit="step", disable=not main_process)
    with bar, termination() as terminated, explain_out_of_memory():
        while not is_done():
            model.train()
            train_batches.begin(progress.epoch, progress.epoch_step)
            bar.set_description(f"epoch {progress.epoch + 1}")
            losses = torch.zeros((), device=accelerator.device)
            for number, batch in enumerate(train_batches):
                if progress.step == max_steps:
                    break
                batch = send_to_device(batch, accelerator.device)
                with accelerator.accumulate(model):
                    output = run_segmenter(model, batch)
                    loss = train_batches.mean(
                        segmentation_loss(output, batch["masks"]),
                        progress.epoch_step,
                        number % args.gradient_accumulation_steps,
                    )
                    if not torch.isfinite(loss):
                        raise InputError(
                            f"the loss is {loss.item()} at step {progress.step + 1}; lower --learning_rate? batch: "
                            f"{train_batches.names(batch)}"
                        )
                    accelerator.backward(loss)
                    losses += loss.detach() / args.gradient_accumulation_steps
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(trainable.values(), args.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if not accelerator.sync_gradients:
                    continue
                progress.step += 1
                progress.epoch_step += 1
                # 16-bit training skips a step whose gradients overflow.
                if not plateau and not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                train_loss = accelerator.reduce(losses, "mean").item()
                losses.zero_()
                accelerator.log(
                    {"train_loss": train_loss, "learning_rate": optimizer.param_groups[0]["lr"]}, step=progress.step
                )
                shown["loss"] = f"{train_loss:.3f}"
                bar.update()
                bar.set_postfix(shown)
                if terminated:
                    accelerator.set_trigger()
                if accelerator.check_trigger():
                    save_checkpoint()
                    accelerator.print(f"stopped at step {progress.step}; go on with --resume_from_checkpoint latest")
                    end_processes(accelerator)
                    raise SystemExit(TERMINATED)
                if args.checkpointing_steps.isdigit() and progress.step % int(args.checkpointing_steps) == 0:
                    save_checkpoint()

            bar.set_description(f"epoch {progress.epoch + 1}, validation")
            validation = evaluate(model, loaders["val"], accelerator)
            accelerator.log({f"val_{name}": value for name, value in validation.items()}, step=progress.step)
            shown["val_dice"] = f"{validation['dice']:.3f}"
            bar.set_postfix(shown)
            if plateau:
                scheduler.step(validation["loss"])
            if validation["dice"] > progress.best["dice"]:
                progress.best = validation
                best_weights = {name: parameter.detach().cpu().clone() for name, parameter in trainable.items()}
                if main_process:
                    save_finetuned(bare_model, processor, output_dir)
                    if args.with_tracking:
                        picture = draw_samples(bare_model, eval_sets["val"], accelerator.device)
                        log_picture(accelerator, "val_samples", picture, progress.step)
            if validation["dice"] > progress.stopping_dice + STOPPING_MIN_DELTA:
                progress.stopping_dice, progress.epochs_without_gain = validation["dice"], 0
            else:
                progress.epochs_without_gain += 1
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
            if args.checkpointing_steps == "epoch":
                save_checkpoint()
        train_seconds = progress.train_seconds + time.monotonic() - started

        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(best_weights[name])
        if main_process:
            save_finetuned(bare_model, processor, output_dir)
        test = {}
        if "test" in loaders:
            bar.set_description("test")
            test = evaluate(model, loaders["test"], accelerator)

    if main_process:
        figures = {f"test_{name}": value for name, value in test.items() if name != "loss"}
        figures |= {f"val_{name}": value for name, value in progress.best.items() if name != "loss"}
        results = {
            **figures,
            "trainable_parameters": sum(parameter.numel() for parameter in trainable.values()),
            "total_parameters": sum(parameter.numel() for parameter in bare_model.parameters()),
            "train_steps": progress.step,
            "train_seconds": round(train_seconds, 3),
            **asdict(args),
        }
        samples = draw_samples(bare_model, eval_sets[splits[-1]], accelerator.device)
        if args.with_tracking:
            log_picture(accelerator, "samples", samples, progress.step)
        save_results(output_dir, results, {"samples": samples, "curves": draw_curves(read_log(output_dir))})
        write_model_card(output_dir, args.hub_model_id)
        means = {name: value for name, value in figures.items() if not name.endswith("_std")}
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in means.items())
        print(f"{told}; results in {output_dir}")
        if args.push_to_hub:
            repository = args.hub_model_id or output_dir.resolve().name
            print(f"published at {push_folder(output_dir, repository, private=args.hub_private_repo)}")
    end_processes(accelerator)


if __name__ == "__main__":
    main()
