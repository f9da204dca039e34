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
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import parse_arguments
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.data.workers import outlive_sigterm
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error, explain_out_of_memory
from peft_vlsm.segmentation.evaluation.validation import evaluate
from peft_vlsm.segmentation.models.finetuned import load_base, make_output_dir, save_finetuned, save_results
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss
from peft_vlsm.segmentation.prompts.choice import choose_prompt
from peft_vlsm.segmentation.publishing.model_card import write_model_card
from peft_vlsm.segmentation.publishing.upload import push_folder
from peft_vlsm.segmentation.sources.open import Stream, has_split, load_rows, open_stream
from peft_vlsm.segmentation.sources.rows import read_rows
from peft_vlsm.segmentation.sources.streaming import StreamingLoader, StreamingSegmentationDataset
from peft_vlsm.segmentation.training.batches import RowSteps, StepBatches, StreamSteps
from peft_vlsm.segmentation.training.checkpoints import (
    Checkpoints,
    Progress,
    find_checkpoint,
    load_weights_and_progress,
    remove_checkpoints,
    remove_staging,
)
from peft_vlsm.segmentation.training.methods import (
    Method,
    checkpoint_gradients,
    freeze_what_the_loss_misses,
    make_trainable,
    resolve,
)
from peft_vlsm.segmentation.training.processes import end_processes
from peft_vlsm.segmentation.training.samples import draw_samples
from peft_vlsm.segmentation.training.settings import FREE_SETTINGS, PLATEAU, FinetuneArguments
from peft_vlsm.segmentation.training.sharding import PreparedRun, check_launch
from peft_vlsm.segmentation.training.termination import TERMINATED, termination
from peft_vlsm.segmentation.training.tracking import (
    JsonlTracker,
    draw_curves,
    log_picture,
    make_trackers,
    read_log,
    start_trackers,
)

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 5
STOPPING_MIN_DELTA = 1e-4
TOLD_PROMPTS = 50
VALIDATION_STEPS = 100


def make_accelerator(args: FinetuneArguments, tracker: JsonlTracker) -> Accelerator:
    precision = args.mixed_precision
    if precision is None and "ACCELERATE_MIXED_PRECISION" not in os.environ and torch.cuda.is_available():
        precision = "fp16"
    trackers = make_trackers(args.with_tracking, args.report_to)
    try:
        return Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=precision,
            log_with=[*trackers, tracker],  # The log starts last.
            project_dir=args.output_dir,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--mixed_precision {precision}: {error}") from error


def make_batches(
    args: FinetuneArguments, stream: Stream | None, rows: dict, processor: Processor, accelerator: Accelerator
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


def make_scheduler(optimizer: torch.optim.Optimizer, args: FinetuneArguments, max_steps: int) -> LRScheduler:
    """Steps with every epoch's validation loss (the paper's), or else with every optimizer step."""
    if args.lr_scheduler_type == PLATEAU:
        return ReduceLROnPlateau(optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)
    return get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, max_steps)


def whole_path(name: str | None) -> str | None:
    """A folder by its absolute path, a name on the Hub as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def clear_output(folder: Path) -> None:
    """With --overwrite_output_dir: an earlier run's checkpoints and pictures must not pass for this one's."""
    remove_checkpoints(folder)
    for old in (folder / "log.jsonl", folder / "curves.png", *(folder / "samples").glob("*samples_*.png")):
        old.unlink(missing_ok=True)


@exit_on_input_error
def main():
    args = parse_arguments(FinetuneArguments, description=__doc__)
    output_dir = Path(args.output_dir)
    transformers_logging.disable_progress_bar()
    tracker = JsonlTracker(output_dir)
    accelerator = make_accelerator(args, tracker)
    check_launch(accelerator)
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
    base_name = model.name_or_path
    args.image_size = fit_processor(processor, model.config, args.image_size)
    choice = {"prompt": args.prompt, "override_prompt": args.override_prompt}
    train_batches = make_batches(args, stream, rows, processor, accelerator)
    eval_sets = {split: SegmentationDataset(rows[split], processor, **choice) for split in splits[1:]}
    model = make_trainable(model, method).to(accelerator.device)
    if args.gradient_checkpointing:
        checkpoint_gradients(model)
    probe = send_to_device(eval_sets["val"].collate([eval_sets["val"][0]]), accelerator.device)
    missed = freeze_what_the_loss_misses(
        model, lambda: segmentation_loss(run_segmenter(model, probe), probe["masks"]).sum()
    )
    if missed:
        accelerator.print(f"{len(missed)} weights that reach no mask stay as they are, such as {missed[0]}")
    progress, best_weights, checkpoint = Progress(), {}, None
    settings = {name: value for name, value in asdict(args).items() if name not in FREE_SETTINGS}
    settings["rows_per_step"] = train_batches.rows_per_step
    if args.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
        if checkpoint is None:
            accelerator.print(f"there is no checkpoint in {output_dir} yet; starting from the beginning")
        else:
            progress, best_weights = load_weights_and_progress(checkpoint, model, settings)

    eval_loaders = [
        DataLoader(
            dataset,
            batch_size=args.per_device_eval_batch_size,
            collate_fn=dataset.collate,
            num_workers=args.dataloader_num_workers,
            worker_init_fn=outlive_sigterm,
        )
        for dataset in eval_sets.values()
    ]
    total_parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=args.weight_decay)
    run = PreparedRun(
        accelerator, model, optimizer, eval_loaders, args.per_device_train_batch_size, args.max_grad_norm
    )
    model, optimizer, bare_model = run.model, run.optimizer, run.bare_model
    loaders = dict(zip(eval_sets, run.loaders, strict=True))
    max_steps = args.max_train_steps or args.num_train_epochs * train_batches.steps
    scheduler = make_scheduler(optimizer, args, max_steps)
    plateau = isinstance(scheduler, ReduceLROnPlateau)

    limit, stream_place = args.checkpoints_total_limit or None, train_batches.stream
    checkpoints = Checkpoints(output_dir, run, processor, settings, limit, stream_place)
    if checkpoint is not None:
        checkpoints.load_states(checkpoint, progress)
        scheduler.load_state_dict(progress.scheduler)
        accelerator.print(f"going on from {checkpoint}, step {progress.step}")
    if main_process and checkpoint is None:
        read_rows([row for split in rows.values() for row in split])
    accelerator.wait_for_everyone()
    if main_process:
        make_output_dir(output_dir)
        remove_staging(output_dir)
    tracker.resumed_step, tracker.validates_again = progress.step, progress.epoch_step > 0
    # A tracker that cannot start ends the run here, before an earlier run's results are cleared.
    start_trackers(
        accelerator, {name: value for name, value in asdict(args).items() if value is not None}, progress.step
    )
    if main_process and progress.step == 0:
        clear_output(output_dir)
    accelerator.wait_for_everyone()

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
    batch = None
    bar = tqdm(total=max_steps, initial=progress.step, unit="step", disable=not main_process)
    with bar, termination() as terminated, explain_out_of_memory():
        while not is_done():
            model.train()
            train_batches.begin(progress.epoch, progress.epoch_step)
            bar.set_description(f"epoch {progress.epoch + 1}")
            losses = torch.zeros((), device=accelerator.device)
            for number, batch in enumerate(train_batches if progress.step < max_steps else ()):
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
                        accelerator.clip_grad_norm_(run.trainable.values(), args.max_grad_norm)
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
                # Here and not before the next step: a stream would be read one batch too far.
                if progress.step == max_steps:
                    break

            bar.set_description(f"epoch {progress.epoch + 1}, validation")
            validation = evaluate(model, loaders["val"], accelerator)
            if not math.isfinite(validation["loss"]):
                names = "" if batch is None else train_batches.names(batch)
                raise InputError(
                    f"the validation loss is {validation['loss']} after step {progress.step}; lower --learning_rate? "
                    f"the step's last batch: {names}"
                )
            accelerator.log({f"val_{name}": value for name, value in validation.items()}, step=progress.step)
            shown["val_dice"] = f"{validation['dice']:.3f}"
            bar.set_postfix(shown)
            if plateau:
                scheduler.step(validation["loss"])
            if validation["dice"] > progress.best["dice"]:
                progress.best = validation
                best_weights, weights = run.trained_weights(), run.weights_to_save()
                if main_process:
                    save_finetuned(bare_model, processor, output_dir, weights)
                if args.with_tracking:
                    picture = draw_samples(model, eval_sets["val"], accelerator.device)
                    log_picture(accelerator, "val_samples", picture, progress.step)
            if validation["dice"] > progress.stopping_dice + STOPPING_MIN_DELTA:
                progress.stopping_dice, progress.epochs_without_gain = validation["dice"], 0
            else:
                progress.epochs_without_gain += 1
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
            if args.checkpointing_steps == "epoch":
                save_checkpoint()
        train_seconds = progress.train_seconds + time.monotonic() - started

        run.put_trained_weights(best_weights)
        weights = run.weights_to_save()
        if main_process:
            save_finetuned(bare_model, processor, output_dir, weights)
        test = {}
        if "test" in loaders:
            bar.set_description("test")
            test = evaluate(model, loaders["test"], accelerator)
        samples = draw_samples(model, eval_sets[splits[-1]], accelerator.device)

    if main_process:
        figures = {f"test_{name}": value for name, value in test.items() if name != "loss"}
        figures |= {f"val_{name}": value for name, value in progress.best.items() if name != "loss"}
        results = {
            **figures,
            "trainable_parameters": sum(parameter.numel() for parameter in run.trainable.values()),
            "total_parameters": total_parameters,
            "train_steps": progress.step,
            "train_seconds": round(train_seconds, 3),
            **asdict(args),
            # What others may load too has its whole path, wherever the run was started.
            "model_name_or_path": base_name,
            "dataset_name": whole_path(args.dataset_name),
        }
        if "test" in rows and args.override_prompt is None:
            asked = [choose_prompt(row, args.prompt, seed=None, epoch=0) for row in rows["test"]]
            results["test_prompts"] = list(dict.fromkeys(asked))[:TOLD_PROMPTS]
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
