"""Fine-tunes a text-prompted segmentation model on your own images: adapters, LoRA, the decoder, or all of it.

    python examples/finetune.py --data_dir DIR --output_dir OUT
    accelerate launch --mixed_precision fp16 examples/finetune.py --data_dir DIR --output_dir OUT
    python examples/finetune.py settings.yaml

DIR holds anns/{train,val,test}.json, images/ and masks/ in the MedVLSM layout. The defaults are the settings of the
paper (VLSM-Adapter, arXiv 2405.06196). OUT holds the best weights by validation Dice from the first epoch on, and at
the end the processor, all_results.json and samples.png too.
"""

import math
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler
from transformers.utils import logging as transformers_logging

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig, enable_encoder_gradients
from peft_vlsm.architectures import unreached_parameters
from peft_vlsm.segmentation.annotations import SPLITS, read_annotations
from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.dataset import SegmentationDataset
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.evaluation import evaluate, mask_logits
from peft_vlsm.segmentation.finetuned import (
    load_base,
    make_output_dir,
    quiet_loading,
    save_finetuned,
    save_results,
)
from peft_vlsm.segmentation.images import open_pair
from peft_vlsm.segmentation.losses import dice_bce_loss
from peft_vlsm.segmentation.metrics import SegmentationMetric
from peft_vlsm.segmentation.pictures import Sample, contact_sheet
from peft_vlsm.segmentation.processes import end_processes
from peft_vlsm.segmentation.transforms import fit_processor

PLATEAU = "reduce_lr_on_plateau"
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 5
STOPPING_PATIENCE, STOPPING_MIN_DELTA = 20, 1e-4
LORA_RANK = 16
OUR_METHODS = ("dense", "shallow")
SAMPLES = 6


@dataclass
class Arguments:
    data_dir: str = field(metadata={"help": "Folder with anns/, images/ and masks/."})
    output_dir: str = field(metadata={"help": "Folder for the results; must be new or empty."})
    model_name_or_path: str = option("CIDAS/clipseg-rd64-refined", "The base model: a folder or a name on the Hub.")
    method: Literal["dense", "shallow", "lora", "decoder", "full"] = option("dense", "What trains.")
    variant: str | None = option(None, "Where adapters stand: V (vision), L (text), C (conditional); VL if not given.")
    adapter_dim: int | None = option(None, "Adapter width: 64 for dense, 512 for shallow; for lora the rank, 16.")
    init_weights: Literal["paper", "True"] | None = option(
        None, "How adapters start: paper (nn.Linear's own, if not given), or True (the output is unchanged at first)."
    )
    train_decoder: bool = option(False, "Train the decoder along with the adapters.")
    image_size: int | None = option(None, "Side of the square images in pixels; the processor's own if not given.")
    num_train_epochs: int = option(200, "At most so many epochs; early stopping ends sooner.")
    max_train_steps: int | None = option(None, "At most so many optimizer steps; replaces num_train_epochs.")
    per_device_train_batch_size: int = option(32, "Images a step and process.")
    per_device_eval_batch_size: int = option(32, "Images a batch and process in evaluation.")
    gradient_accumulation_steps: int = option(1, "Batches an optimizer step.")
    learning_rate: float | None = option(None, "1e-3, for shallow 3e-4, if not given.")
    weight_decay: float = option(1e-3, "AdamW's.")
    max_grad_norm: float = option(0.5, "Gradients are clipped to this norm.")
    lr_scheduler_type: Literal["reduce_lr_on_plateau", "constant", "constant_with_warmup", "linear", "cosine"] = (
        option(PLATEAU, "What the learning rate follows: the validation loss, as in the paper, or the steps.")
    )
    num_warmup_steps: int = option(0, "Optimizer steps in which the learning rate rises from 0.")
    seed: int = option(42, "Of new weights, the order of images and the choice of prompts.")
    overwrite_output_dir: bool = option(False, "Replace the results that output_dir holds.")

    def __post_init__(self):
        for name in ("adapter_dim", "image_size", "max_train_steps", "learning_rate"):
            self._check(name, getattr(self, name) is None or getattr(self, name) > 0, "must be above 0")
        for name in ("num_train_epochs", "gradient_accumulation_steps", "max_grad_norm"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("learning_rate", "weight_decay"):
            self._check(name, getattr(self, name) is None or math.isfinite(getattr(self, name)), "must be finite")
        for name in ("weight_decay", "num_warmup_steps"):
            self._check(name, getattr(self, name) >= 0, "must not be negative")
        idle = self.lr_scheduler_type in (PLATEAU, "constant") and self.num_warmup_steps > 0
        problem = f"does nothing with --lr_scheduler_type {self.lr_scheduler_type}; give constant_with_warmup, say"
        self._check("num_warmup_steps", not idle, problem)
        self._check("seed", 0 <= self.seed < 2**32, "must lie between 0 and 4294967295")
        for name in ("variant", "adapter_dim", "train_decoder", "init_weights"):
            methods = OUR_METHODS if name == "init_weights" else (*OUR_METHODS, "lora")
            idle = self.method not in methods and getattr(self, name) not in (None, False)
            self._check(name, not idle, f"does nothing with --method {self.method}; leave it out")
        output = Path(self.output_dir)
        self._check("output_dir", not output.exists() or output.is_dir(), "is a file; name a folder")
        empty = not output.exists() or not any(output.iterdir())
        self._check(
            "output_dir",
            empty or self.overwrite_output_dir,
            "is not empty; name another, or add --overwrite_output_dir",
        )
        for name in ("data_dir", "model_name_or_path"):
            same = output.resolve() == Path(getattr(self, name)).resolve()
            self._check("output_dir", not same, f"is --{name}; name another folder")
        if self.init_weights is None and self.method in OUR_METHODS:
            self.init_weights = "paper"
        if self.learning_rate is None:
            self.learning_rate = 3e-4 if self.method == "shallow" else 1e-3

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")


def lora_config(model: PreTrainedModel, args: Arguments, modules_to_save: list[str] | None) -> LoraConfig:
    """LoRA on the query and value projections of the encoders, as far as they reach a mask."""
    args.variant, args.adapter_dim = args.variant or "VL", args.adapter_dim or LORA_RANK
    if args.variant not in ("V", "L", "VL", "LV"):
        raise ValueError(f"variant is {args.variant!r}; allowed for LoRA: V, L or VL.")
    encoders = "|".join({"V": "vision_model", "L": "text_model"}[letter] for letter in args.variant)
    pattern = re.compile(rf"clip\.({encoders})\.encoder\.layers\.\d+\.self_attn\.[qv]_proj")
    unreached = unreached_parameters(model)
    targets = [n for n, _ in model.named_modules() if pattern.fullmatch(n) and f"{n}.weight" not in unreached]
    rank = args.adapter_dim
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, modules_to_save=modules_to_save)


def adapter_config(model: PreTrainedModel, args: Arguments) -> PeftConfig:
    decoder = ["decoder"] if args.train_decoder else None
    if args.method == "lora":
        return lora_config(model, args, decoder)
    width = {} if args.adapter_dim is None else {"adapter_dim": args.adapter_dim}
    config_class = DenseAdapterConfig if args.method == "dense" else ShallowAdapterConfig
    init_weights = "paper" if args.init_weights == "paper" else True
    config = config_class(variant=args.variant, init_weights=init_weights, modules_to_save=decoder, **width)
    args.variant, args.adapter_dim = config.variant, config.adapter_dim
    return config


def make_trainable(model: PreTrainedModel, args: Arguments) -> PreTrainedModel | PeftModel:
    """Leaves `requires_grad` at exactly what --method trains."""
    # CLIPSeg runs its encoders under no_grad: without enable_encoder_gradients nothing in them would train.
    if args.method == "full":
        enable_encoder_gradients(model)
        unreached = unreached_parameters(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in unreached)
        return model
    model.requires_grad_(False)
    if args.method == "decoder":
        model.get_submodule("decoder").requires_grad_(True)
        return model
    if args.method == "lora":
        enable_encoder_gradients(model)
    try:
        with quiet_loading():
            return get_peft_model(model, adapter_config(model, args))
    except ValueError as error:
        raise InputError(f"--method {args.method}: {error}") from error


def make_scheduler(optimizer: torch.optim.Optimizer, args: Arguments, max_steps: int) -> LRScheduler:
    """Steps with every epoch's validation loss (the paper's), or else with every optimizer step."""
    if args.lr_scheduler_type == PLATEAU:
        return ReduceLROnPlateau(optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)
    return get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, max_steps)


@torch.no_grad()
def draw_samples(model, dataset: SegmentationDataset, device: torch.device):
    """A contact sheet of some of the data set's rows, spread evenly over it."""
    model.eval()
    places = sorted({round(place) for place in torch.linspace(0, len(dataset) - 1, SAMPLES).tolist()})
    samples = []
    for place in places:
        batch = {name: value.to(device) for name, value in dataset.collate([dataset[place]]).items()}
        predicted, true = mask_logits(model, batch) > 0, batch["masks"] > 0
        metric = SegmentationMetric()
        metric.add_batch(predictions=predicted, references=true)
        image, mask = open_pair(dataset.rows[place].image, dataset.rows[place].mask)
        samples.append(
            Sample(image, dataset.prompt(place), mask, predicted[0].cpu().numpy(), metric.compute()["dice"])
        )
    return contact_sheet(samples)


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__.splitlines()[0])
    output_dir = Path(args.output_dir)
    transformers_logging.disable_progress_bar()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    set_seed(args.seed)

    # Everything that can be wrong with data and model shows here, before anything is written.
    rows = {split: read_annotations(args.data_dir, split) for split in SPLITS}
    accelerator.print(f"loading {args.model_name_or_path}")
    model, processor = load_base(args.model_name_or_path)
    args.image_size = fit_processor(processor, model.config, args.image_size)
    train_set = SegmentationDataset(rows["train"], processor, seed=args.seed)
    val_set, test_set = (SegmentationDataset(rows[split], processor) for split in ("val", "test"))
    model = make_trainable(model, args)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    train_loader = DataLoader(
        train_set, batch_size=args.per_device_train_batch_size, shuffle=True, collate_fn=train_set.collate
    )
    val_loader, test_loader = (
        DataLoader(dataset, batch_size=args.per_device_eval_batch_size, collate_fn=dataset.collate)
        for dataset in (val_set, test_set)
    )
    model, optimizer, train_loader, val_loader, test_loader = accelerator.prepare(
        model, optimizer, train_loader, val_loader, test_loader
    )
    bare_model = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        make_output_dir(output_dir)

    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    max_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    scheduler = make_scheduler(optimizer, args, max_steps)
    shown = {"loss": "?", "val_dice": "?"}
    step, best, best_weights, stopping_dice, epochs_without_gain = 0, {"dice": -1.0}, {}, -1.0, 0
    started = time.monotonic()
    with tqdm(total=max_steps, unit="step", disable=not accelerator.is_main_process) as bar:
        for epoch in range(math.ceil(max_steps / steps_per_epoch)):
            model.train()
            train_set.set_epoch(epoch)
            train_loader.set_epoch(epoch)
            bar.set_description(f"epoch {epoch + 1}")
            for batch in train_loader:
                with accelerator.accumulate(model):
                    loss = dice_bce_loss(mask_logits(model, batch), batch["masks"]).mean()
                    if not torch.isfinite(loss):
                        files = ", ".join(str(train_set.rows[place].image) for place in batch["places"].tolist())
                        raise InputError(
                            f"the loss is {loss.item()} at step {step + 1}; lower --learning_rate? batch: {files}"
                        )
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(trainable.values(), args.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    step += 1
                    # 16-bit training skips a step whose gradients overflow.
                    if not isinstance(scheduler, ReduceLROnPlateau) and not accelerator.optimizer_step_was_skipped:
                        scheduler.step()
                    shown["loss"] = f"{loss.item():.3f}"
                    bar.update()
                    bar.set_postfix(shown)
                if step == max_steps:
                    break

            bar.set_description(f"epoch {epoch + 1}, validation")
            validation = evaluate(model, val_loader, accelerator)
            shown["val_dice"] = f"{validation['dice']:.3f}"
            bar.set_postfix(shown)
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(validation["loss"])
            if validation["dice"] > best["dice"]:
                best = validation
                best_weights = {name: parameter.detach().cpu().clone() for name, parameter in trainable.items()}
                if accelerator.is_main_process:
                    save_finetuned(bare_model, processor, output_dir)
            if validation["dice"] > stopping_dice + STOPPING_MIN_DELTA:
                stopping_dice, epochs_without_gain = validation["dice"], 0
            else:
                epochs_without_gain += 1
            if epochs_without_gain == STOPPING_PATIENCE:
                break
        train_seconds = time.monotonic() - started

        bar.set_description("test")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(best_weights[name])
        test = evaluate(model, test_loader, accelerator)

    if accelerator.is_main_process:
        results = {
            "test_dice": test["dice"],
            "test_iou": test["iou"],
            "val_dice": best["dice"],
            "val_iou": best["iou"],
            "trainable_parameters": sum(parameter.numel() for parameter in trainable.values()),
            "total_parameters": sum(parameter.numel() for parameter in bare_model.parameters()),
            "train_steps": step,
            "train_seconds": round(train_seconds, 3),
            **asdict(args),
        }
        save_results(output_dir, results, draw_samples(bare_model, test_set, accelerator.device))
        print(f"test Dice {test['dice']:.4f}, IoU {test['iou']:.4f}; results in {output_dir}")
    end_processes(accelerator)


if __name__ == "__main__":
    main()
