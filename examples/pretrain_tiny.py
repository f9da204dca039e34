"""Trains the embedded model `examples/tiny_clipseg` from scratch on synthetic scenes, and measures it.

    python examples/pretrain_tiny.py --output_dir OUT   trains, evaluates, writes model, processor and card
    python examples/pretrain_tiny.py --evaluate DIR     measures a stored model on the held-out scenes

The result is an ordinary `CLIPSegForImageSegmentation`, small enough for a repository: tests and the demo run on it
without a download. Every scene is encoded once and decoded for several prompts, so that a step sees the same image
with other words and another mask: this is what teaches the model to follow the prompt.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tiny_recipe.evaluation import HELD_OUT_SCENES, HELD_OUT_SEED, evaluate, model_card
from tiny_recipe.objects import IMAGE_SIZE
from tiny_recipe.prompts import make_prompt
from tiny_recipe.scenes import make_scene
from tiny_recipe.tokenizer import MAX_LENGTH, build_tokenizer
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessorPil
from transformers.utils import logging as transformers_logging

from peft_vlsm import enable_encoder_gradients
from peft_vlsm.segmentation.arguments import OneLineParser
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.models.losses import dice_bce_loss

TOKENIZER_SCENES = 2000
EMBEDDING_DEVIATION = 0.3
CHECKPOINT_STEPS = 250


class TrainingSteps(Dataset):
    """
    The batch of every training step; item `i` depends on the seed and on `i` alone, so that a run can be resumed.

    Args:
        image_processor (`~transformers.BaseImageProcessor`): turns the scenes into pixel values.
        seed (`int`): the seed of the scenes.
        steps (`int`): the number of batches.
        scenes (`int`): scenes in a batch.
        prompts (`int`): prompts per scene.
    """

    def __init__(self, image_processor, seed: int, steps: int, scenes: int, prompts: int):
        self.image_processor = image_processor
        self.seed, self.steps, self.scenes, self.prompts = seed, steps, scenes, prompts

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        rng = np.random.default_rng([self.seed, step, 1])
        scenes = [make_scene(self.seed, step * self.scenes + i) for i in range(self.scenes)]
        prompts = [make_prompt(scene, rng) for scene in scenes for _ in range(self.prompts)]
        # What the image processor computes for images of this size, in a fifth of its time.
        pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])) / 255
        mean, deviation = (torch.tensor(self.image_processor.to_dict()[name]) for name in ("image_mean", "image_std"))
        pixel_values = ((pixels - mean) / deviation).permute(0, 3, 1, 2).contiguous()
        masks = torch.from_numpy(np.stack([prompt.mask for prompt in prompts]))
        return {"pixel_values": pixel_values, "texts": [prompt.text for prompt in prompts], "masks": masks}


def build_processor(seed: int) -> CLIPSegProcessor:
    """Images of 128 x 128 with ImageNet's mean and deviation, and a tokenizer trained on our prompts."""
    rng = np.random.default_rng([seed, 2])
    texts = [make_prompt(make_scene(seed, index), rng).text for index in range(TOKENIZER_SCENES)]
    image_processor = ViTImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return CLIPSegProcessor(image_processor, build_tokenizer(texts))


def build_model(tokenizer) -> CLIPSegForImageSegmentation:
    """The untrained model: six layers in each encoder, three tapped by the decoder, under two million parameters."""
    width, text_width = 128, 96
    config = CLIPSegConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": text_width,
            "intermediate_size": 2 * text_width,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 16,
        },
        projection_dim=text_width,
        extract_layers=[1, 3, 5],
        reduce_dim=64,
        decoder_intermediate_size=256,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    # With deviation 0.02 the decoder's signal dies out, and positions and words drown in the rest.
    for module in [*model.decoder.modules(), model.clip.vision_model.embeddings.patch_embedding]:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm):
            module.reset_parameters()
    for module in model.clip.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_DEVIATION)
    return model


def predict_masks(model: CLIPSegForImageSegmentation, pixel_values, tokens, prompts: int) -> torch.Tensor:
    """
    The logits of several prompts per image; each image is encoded once.

    Args:
        model (`CLIPSegForImageSegmentation`): the model, its encoders' gradients enabled.
        pixel_values (`torch.Tensor` of shape `(scenes, 3, height, width)`): the images.
        tokens (`BatchEncoding`): `scenes * prompts` rows, the prompts of an image next to each other.
        prompts (`int`): prompts per image.

    Returns:
        `torch.Tensor` of shape `(scenes * prompts, height, width)`: the logits.
    """
    embeddings = model.get_conditional_embeddings(len(tokens.input_ids), **tokens)
    states = model.clip.get_image_features(pixel_values, output_hidden_states=True).hidden_states
    tapped = [states[layer + 1].repeat_interleave(prompts, dim=0) for layer in model.extract_layers]
    return model.decoder(tapped, embeddings).logits


def train(
    args: argparse.Namespace, processor: CLIPSegProcessor, working_dir: Path
) -> tuple[CLIPSegForImageSegmentation, float]:
    """Runs all steps, from `working_dir`'s checkpoint where there is one; gives the model and the seconds it took."""
    torch.manual_seed(args.seed)
    model = build_model(processor.tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.max_train_steps, pct_start=0.1, cycle_momentum=False
    )
    first, seconds = 0, 0.0
    checkpoint_file = working_dir / "checkpoint.pt"
    settings = {
        name: getattr(args, name) for name in ("max_train_steps", "batch_size", "prompts", "learning_rate", "seed")
    }
    if checkpoint_file.exists():
        checkpoint = torch.load(checkpoint_file, weights_only=True)
        if checkpoint["settings"] != settings:
            raise InputError(
                f"{checkpoint_file} was written with other settings, {checkpoint['settings']}: give these"
            )
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        first, seconds = checkpoint["step"], checkpoint["seconds"]

    steps = TrainingSteps(processor.image_processor, args.seed, args.max_train_steps, args.batch_size, args.prompts)
    loader = DataLoader(steps, batch_size=None, sampler=range(first, args.max_train_steps))
    encoder_gradients = enable_encoder_gradients(model)
    started = time.monotonic() - seconds
    average = None
    progress = tqdm(loader, initial=first, total=args.max_train_steps, desc="pretraining", unit="step")
    for step, batch in enumerate(progress, start=first + 1):
        tokens = processor.tokenizer(batch["texts"], padding=True, truncation=True, return_tensors="pt")
        logits = predict_masks(model, batch["pixel_values"], tokens, args.prompts)
        loss = dice_bce_loss(logits, batch["masks"]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        if step % CHECKPOINT_STEPS == 0 and step < args.max_train_steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": step,
                "seconds": time.monotonic() - started,
                "settings": settings,
            }
            torch.save(state, checkpoint_file.with_suffix(".tmp"))
            checkpoint_file.with_suffix(".tmp").replace(checkpoint_file)
    encoder_gradients.remove()
    return model.eval(), time.monotonic() - started


def check(args: argparse.Namespace) -> None:
    """Refuses flags that cannot work before anything is written."""
    for name in ("max_train_steps", "batch_size", "prompts", "eval_scenes"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}: give at least 1")
    if not 0 <= args.seed < HELD_OUT_SEED:
        raise InputError(f"--seed is {args.seed}: give 0 to {HELD_OUT_SEED - 1}, larger ones draw the held-out scenes")
    if not args.learning_rate > 0:
        raise InputError(f"--learning_rate is {args.learning_rate}: give a number above 0")
    if (args.output_dir is None) == (args.evaluate is None):
        raise InputError("give either --output_dir, to train, or --evaluate, to measure a stored model")


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace what is there, once all is done")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUTPUT_DIR.partial")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="measure the model in DIR; writes nothing")
    parser.add_argument("--max_train_steps", type=int, default=10500)
    parser.add_argument("--batch_size", type=int, default=16, help="scenes per step")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per scene")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the highest one of the cycle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval_scenes", type=int, default=HELD_OUT_SCENES, help="held-out scenes to measure on")
    return parser.parse_args()


@exit_on_input_error
def main() -> None:
    args = parse_args()
    check(args)
    transformers_logging.disable_progress_bar()
    if args.evaluate is not None:
        print(json.dumps(evaluate(*load(args.evaluate), args.eval_scenes), indent=2))
        return

    working_dir = prepare_working_dir(args)
    processor = build_processor(args.seed)
    # Stored before its first use, which leaves the padding of the last batch in the tokenizer's file.
    processor.save_pretrained(working_dir)
    model, seconds = train(args, processor, working_dir)
    model.save_pretrained(working_dir)
    # Measured on what was stored, so that the card's figures are those of the files beside it.
    figures = evaluate(*load(working_dir), args.eval_scenes)
    training = {
        **vars(args),
        "parameters": model.num_parameters(),
        "minutes": seconds / 60,
        "threads": torch.get_num_threads(),
    }
    (working_dir / "README.md").write_text(model_card(figures, training), encoding="utf-8")
    (working_dir / "checkpoint.pt").unlink(missing_ok=True)
    publish(working_dir, args.output_dir)
    print(json.dumps(figures, indent=2))


def load(folder: Path) -> tuple[CLIPSegForImageSegmentation, CLIPSegProcessor]:
    """The model, in eval mode, and the processor that a folder holds."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no model (config.json is missing): name a folder that this script wrote")
    try:
        return CLIPSegForImageSegmentation.from_pretrained(folder), CLIPSegProcessor.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded: {error}; name a folder that this script wrote") from error


def prepare_working_dir(args: argparse.Namespace) -> Path:
    """The folder beside the output folder that all is written to until the run is complete."""
    if args.output_dir.resolve() == Path.cwd():
        raise InputError(f"--output_dir {args.output_dir} is the current folder: name another")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"--output_dir {args.output_dir} is a file: give a folder")
    if args.output_dir.is_dir() and any(args.output_dir.iterdir()) and not args.overwrite_output_dir:
        raise InputError(f"--output_dir {args.output_dir} is not empty: give another or pass --overwrite_output_dir")
    working_dir = args.output_dir.with_name(args.output_dir.name + ".partial")
    if args.resume and not (working_dir / "checkpoint.pt").is_file():
        raise InputError(f"--resume: there is no checkpoint in {working_dir}")
    if working_dir.exists() and not args.resume:
        if not args.overwrite_output_dir:
            raise InputError(f"{working_dir} holds an unfinished run: pass --resume or --overwrite_output_dir")
        shutil.rmtree(working_dir)
    try:
        working_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{working_dir} cannot be made: {error.strerror}; name another --output_dir") from error
    return working_dir


def publish(working_dir: Path, output_dir: Path) -> None:
    """Puts the finished folder in its place; what was there is removed only after that."""
    replaced = output_dir.with_name(output_dir.name + ".replaced")
    if output_dir.exists():
        output_dir.rename(replaced)
    working_dir.rename(output_dir)
    shutil.rmtree(replaced, ignore_errors=True)


if __name__ == "__main__":
    main()
