"""Fine-tunes Dense adapters in CLIP to tell classes of images apart by texts, such as "a photo of a cat".

    python examples/finetune_classifier.py --data_dir DIR --output_dir OUT
    accelerate launch examples/finetune_classifier.py --data_dir DIR --output_dir OUT

DIR holds train/CLASS/ and val/CLASS/ with images, and test/CLASS/ if you like. OUT holds the processor and the best
adapter by validation accuracy from the first epoch on, and at the end all_results.json and samples.png too.
"""

import math
import textwrap
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import send_to_device, set_seed
from peft import PeftModel, get_peft_model
from PIL import Image, ImageDraw, ImageFont, ImageOps
from safetensors import SafetensorError
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, CLIPModel, CLIPProcessor, logging

from peft_vlsm import DenseAdapterConfig
from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.data.images import open_image
from peft_vlsm.segmentation.data.transforms import image_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.models.finetuned import make_output_dir, quiet_loading, save_finetuned, save_results
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.pictures import CELL, FONT_FILE, FONT_SIZE, GAP, PREDICTED_COLOR
from peft_vlsm.segmentation.prediction.results_folder import IMAGE_SUFFIXES
from peft_vlsm.segmentation.training.processes import end_processes

SAMPLES, SAMPLE_COLUMNS = 12, 4
Row = tuple[Path, int]


@dataclass
class Arguments:
    data_dir: str = field(metadata={"help": "Folder with train/CLASS/, val/CLASS/ and perhaps test/CLASS/."})
    output_dir: str = field(metadata={"help": "Folder for the results; must be new or empty."})
    model_name_or_path: str = option("openai/clip-vit-base-patch32", "The CLIP model: a folder or a name on the Hub.")
    prompt_template: str = option("a photo of a {}", "A class's text; its name stands for {}, _ as space.")
    variant: Literal["V", "L", "C", "VL", "VC", "LC", "VLC"] = option("VL", "Where: vision, language, conditional.")
    adapter_dim: int = option(64, "Adapter width.")
    init_weights: Literal["paper", "True"] = option("True", "True: no change at first; paper: nn.Linear's own start.")
    num_train_epochs: int = option(10, "Times that every image is seen.")
    max_train_steps: int | None = option(None, "At most so many optimizer steps; replaces num_train_epochs.")
    per_device_train_batch_size: int = option(32, "Images a step and process.")
    per_device_eval_batch_size: int = option(32, "Images a batch and process in evaluation.")
    learning_rate: float = option(1e-3, "AdamW's.")
    weight_decay: float = option(1e-3, "AdamW's.")
    max_grad_norm: float = option(0.5, "Gradients are clipped to this norm.")
    seed: int = option(42, "Of new weights and of the order of images.")
    overwrite_output_dir: bool = option(False, "Replace the results that output_dir holds.")

    def __post_init__(self):
        sizes = ("adapter_dim", "per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*sizes, "num_train_epochs", "max_train_steps", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            self._check(name, value is None or 0 < value < math.inf, "must be above 0 and finite")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "must be finite and not negative")
        self._check("seed", 0 <= self.seed < 2**32, "must lie between 0 and 4294967295")
        self._check("prompt_template", "{}" in self.prompt_template, "has no {} for the class's name")
        output = Path(self.output_dir)
        self._check("output_dir", not output.is_file(), "is a file; name a folder")
        free = self.overwrite_output_dir or not output.exists() or not any(output.iterdir())
        self._check("output_dir", free, "is not empty; name another, or add --overwrite_output_dir")
        taken = (Path(self.data_dir).resolve(), Path(self.model_name_or_path).resolve())
        self._check("output_dir", output.resolve() not in taken, "holds the data or the model; name another folder")

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")


def read_split(folder: Path, classes: list[str] | None = None) -> tuple[list[str], list[Row]]:
    """The classes and the images of a split; all images are read once, so that damaged ones show at once."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder (--data_dir); it must hold one folder of images a class")
    class_folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = classes or [path.name for path in class_folders]
    if not class_folders or len(classes) < 2:
        raise InputError(f"{folder} has {len(class_folders)} class folders; there must be two classes or more")
    rows = []
    for path in class_folders:
        if path.name not in classes:
            raise InputError(f"{path} is a class without training images; those have {', '.join(classes)}")
        files = sorted(file for file in path.glob("[!.]*") if file.name.lower().endswith(IMAGE_SUFFIXES))
        if not files:
            raise InputError(f"{path} holds no image ({' '.join(IMAGE_SUFFIXES)}); fill or remove it")
        rows += [(file, classes.index(path.name)) for file in files]
    for file, _ in rows:
        open_image(file)
    return classes, rows


def load_clip(name_or_path: str) -> tuple[CLIPModel, Processor]:
    # An adapter remembers a folder by its absolute path.
    name = str(Path(name_or_path).resolve()) if Path(name_or_path).is_dir() else name_or_path
    try:
        with quiet_loading():
            kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
            if kind != "clip":
                raise InputError(f"it is of the kind {kind}; this works on clip models")
            model, info = CLIPModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
            loaded = CLIPProcessor.from_pretrained(name)
            processor = Processor(loaded.image_processor, loaded.tokenizer)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"the model {name_or_path} cannot be loaded: {error}") from error
    if info["missing_keys"]:
        raise InputError(f"the model {name} lacks {len(info['missing_keys'])} weights")
    # transformers builds a tokenizer of a few special tokens where its file is missing; bytes alone are 256 tokens.
    text_config, tokens = model.config.text_config, len(processor.tokenizer)
    if not 256 <= tokens <= text_config.vocab_size:
        raise InputError(f"the tokenizer in {name} has {tokens} tokens and the model {text_config.vocab_size}")
    processor.tokenizer.model_max_length = text_config.max_position_embeddings
    return model, processor


def class_texts(processor: Processor, classes: list[str], template: str) -> dict[str, torch.Tensor]:
    """The texts of all classes as tokens, no two of them the same."""
    texts = prompts_to_tensors(processor, [template.replace("{}", name.replace("_", " ")) for name in classes])
    first = {}
    for name, row in zip(classes, texts["input_ids"].tolist(), strict=True):
        other = first.setdefault(tuple(row), name)
        if other != name:
            raise InputError(f"classes {other} and {name} give the same text; rename one or mend --prompt_template")
    return texts


def make_batch(processor: Processor, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    pictures = [image_to_tensor(processor, open_image(file)) for file, _ in rows]
    return torch.stack(pictures), torch.tensor([label for _, label in rows])


@torch.no_grad()
def accuracy(model: torch.nn.Module, loader: DataLoader, texts: dict, accelerator: Accelerator) -> float:
    """The share of images, in all processes, whose own class's text is the most similar one."""
    model.eval()
    right = []
    for pixel_values, labels in loader:
        predicted = model(pixel_values=pixel_values, **texts).logits_per_image.argmax(dim=1)
        right.append(accelerator.gather_for_metrics(predicted == labels))
    return torch.cat(right).double().mean().item()


@torch.no_grad()
def draw_samples(model: PeftModel, processor, rows: list[Row], classes: list[str], texts: dict) -> Image.Image:
    """Images spread evenly over a split, each above its class and the predicted one, in orange where that is wrong."""
    rows = rows[:: math.ceil(len(rows) / SAMPLES)]
    logits = model(pixel_values=make_batch(processor, rows)[0].to(model.device), **texts).logits_per_image
    font, names = ImageFont.truetype(FONT_FILE, FONT_SIZE), [textwrap.fill(name, CELL // 9) for name in classes]
    width, height = CELL + GAP, CELL + GAP + 6 * FONT_SIZE
    sheet = Image.new("RGB", (SAMPLE_COLUMNS * width, math.ceil(len(rows) / SAMPLE_COLUMNS) * height), "white")
    for number, ((file, label), guess) in enumerate(zip(rows, logits.argmax(dim=1).tolist(), strict=True)):
        left, top = number % SAMPLE_COLUMNS * width, number // SAMPLE_COLUMNS * height
        sheet.paste(ImageOps.contain(open_image(file), (CELL, CELL)), (left, top))
        text, color = f"{names[label]}\npredicted: {names[guess]}", "black" if guess == label else PREDICTED_COLOR
        ImageDraw.Draw(sheet).multiline_text((left, top + CELL), text, fill=color, font=font)
    return sheet


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__.splitlines()[0])
    output_dir = Path(args.output_dir)
    logging.disable_progress_bar()
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    set_seed(args.seed)

    # Everything that can be wrong with data and model shows here, before anything is written.
    classes, train_rows = read_split(Path(args.data_dir, "train"))
    held_out = ["val", "test"] if Path(args.data_dir, "test").exists() else ["val"]
    eval_rows = {split: read_split(Path(args.data_dir, split), classes)[1] for split in held_out}
    accelerator.print(f"loading {args.model_name_or_path}")
    model, processor = load_clip(args.model_name_or_path)
    texts = send_to_device(class_texts(processor, classes, args.prompt_template), accelerator.device)
    init_weights = "paper" if args.init_weights == "paper" else True
    config = DenseAdapterConfig(variant=args.variant, adapter_dim=args.adapter_dim, init_weights=init_weights)
    with quiet_loading():
        model = get_peft_model(model, config)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    collate = partial(make_batch, processor)
    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    train_loader = DataLoader(train_rows, args.per_device_train_batch_size, shuffle=True, collate_fn=collate)
    model, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
    eval_loaders = {
        split: accelerator.prepare(DataLoader(rows, args.per_device_eval_batch_size, collate_fn=collate))
        for split, rows in eval_rows.items()
    }
    bare_model = accelerator.unwrap_model(model)
    make_output_dir(output_dir)
    with bare_model.disable_adapter():
        zero_shot = {split: accuracy(bare_model, loader, texts, accelerator) for split, loader in eval_loaders.items()}
    max_steps = args.max_train_steps or args.num_train_epochs * len(train_loader)
    step, val_accuracy, best, best_weights = 0, zero_shot["val"], -1.0, {}
    started = time.monotonic()
    with tqdm(total=max_steps, unit="step", disable=not accelerator.is_main_process) as bar:
        for epoch in range(math.ceil(max_steps / len(train_loader))):
            bar.set_description(f"epoch {epoch + 1}")
            model.train()
            train_loader.set_epoch(epoch)
            for pixel_values, labels in train_loader:
                loss = F.cross_entropy(model(pixel_values=pixel_values, **texts).logits_per_image, labels)
                if not torch.isfinite(loss):
                    raise InputError(f"the loss is {loss.item()} at step {step + 1}; lower --learning_rate?")
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(trainable.values(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                bar.update()
                bar.set_postfix(loss=loss.item(), val_accuracy=val_accuracy)
                if step == max_steps:
                    break
            val_accuracy = accuracy(model, eval_loaders["val"], texts, accelerator)
            bar.set_postfix(loss=loss.item(), val_accuracy=val_accuracy)
            if val_accuracy > best:
                best = val_accuracy
                best_weights = {name: parameter.detach().clone() for name, parameter in trainable.items()}
                if accelerator.is_main_process:
                    save_finetuned(bare_model, processor, output_dir)
    train_seconds = time.monotonic() - started
    bare_model.load_state_dict(best_weights, strict=False)
    test_accuracy = accuracy(model, eval_loaders["test"], texts, accelerator) if "test" in eval_loaders else None
    if accelerator.is_main_process:
        results = {
            "test_accuracy": test_accuracy,
            "val_accuracy": best,
            "zero_shot_test_accuracy": zero_shot.get("test"),
            "zero_shot_val_accuracy": zero_shot["val"],
            "classes": classes,
            "trainable_parameters": sum(parameter.numel() for parameter in trainable.values()),
            "total_parameters": sum(parameter.numel() for parameter in bare_model.parameters()),
            "train_steps": step,
            "train_seconds": round(train_seconds, 3),
            **asdict(args),
        }
        samples = draw_samples(bare_model, processor, eval_rows[held_out[-1]], classes, texts)
        save_results(output_dir, results, {"samples": samples})
        print(f"validation accuracy {best:.4f}, without adapters {zero_shot['val']:.4f}; results in {output_dir}")
    end_processes(accelerator)


if __name__ == "__main__":
    main()
