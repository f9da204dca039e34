"""
Masks from a fine-tuned model: every prompt is embedded once, and every answer has its image's own size.

CLIPSeg's `get_conditional_embeddings` gives the embedding as adapters changed it, and `conditional_embeddings` uses it
as it is; the text encoder therefore runs once a prompt, however many images there are.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.nn import functional
from transformers import ProcessorMixin

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.finetuned import load_finetuned
from peft_vlsm.segmentation.images import open_image
from peft_vlsm.segmentation.transforms import image_to_tensor, prompts_to_tensors


@dataclass(frozen=True)
class Prediction:
    """
    What the model says about one image and one prompt.

    Args:
        file (`Path`): the image's file.
        image (`PIL.Image.Image`): the image in mode RGB, upright.
        prompt (`int`): the prompt's place, counted from 0.
        logits (`torch.Tensor` of shape `(image.height, image.width)`): float32, on the CPU. Above 0 is a probability
            above one half.
    """

    file: Path
    image: Image.Image
    prompt: int
    logits: torch.Tensor


def load_predictor(adapter: str, base: str | None = None) -> tuple[torch.nn.Module, ProcessorMixin]:
    """
    Loads a fine-tuned model as [`load_finetuned`] does, by what a user says on the command line.

    Args:
        adapter (`str`): the output folder of a fine-tuning run, or an adapter's name on the Hub.
        base (`str`, *optional*): the base model's folder or name. Default: the one that the adapter names.

    Returns:
        `tuple[torch.nn.Module, ProcessorMixin]`: the model in eval mode, and the processor as training used it.

    Raises:
        InputError: as [`load_finetuned`]; also where `adapter` neither exists nor is a name on the Hub, and where
            `base` is given beside a folder that holds a whole model.
    """
    if not os.path.exists(adapter) and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", adapter):
        raise InputError(f"--adapter {adapter} does not exist; name an output folder of finetune.py, or OWNER/NAME")
    model, processor = load_finetuned(adapter, base)
    if base is not None and model.name_or_path == str(Path(adapter).resolve()):
        raise InputError(f"--model_name_or_path {base} does nothing: {adapter} holds a whole model; leave it out")
    return model, processor


def check_prompts(processor: ProcessorMixin, prompts: list[str]) -> list[str]:
    """
    Checks what the tokenizer makes of prompts.

    Args:
        processor ([`ProcessorMixin`]): its tokenizer was capped by [`fit_processor`].
        prompts (`list[str]`): not empty, and nor is any of them.

    Returns:
        `list[str]`: the prompts that are too long for the text encoder, which does not see their ends.

    Raises:
        InputError: two prompts are the same to the model, as "Brain" and "brain" are.
    """
    seen: dict[tuple[int, ...], str] = {}
    for prompt in prompts:
        tokens = tuple(processor.tokenizer(prompt, truncation=True)["input_ids"])
        if tokens in seen:
            raise InputError(f"--prompt {seen[tokens]!r} and {prompt!r} are the same to the model; leave one out")
        seen[tokens] = prompt
    whole = processor.tokenizer(prompts, verbose=False)["input_ids"]
    limit = processor.tokenizer.model_max_length
    return [prompt for prompt, tokens in zip(prompts, whole, strict=True) if len(tokens) > limit]


@torch.no_grad()
def embed_prompts(
    model: torch.nn.Module, processor: ProcessorMixin, prompts: list[str], device: torch.device
) -> torch.Tensor:
    """
    The conditional embedding of each prompt, adapters included.

    Args:
        model (`torch.nn.Module`): a CLIPSeg with or without adapters, in eval mode on `device`.
        processor ([`ProcessorMixin`]): its tokenizer was capped by [`fit_processor`].
        prompts (`list[str]`): at least one.
        device (`torch.device`): where the model is.

    Returns:
        `torch.Tensor` of shape `(len(prompts), projection_dim)`: on `device`.
    """
    tokens = {name: value.to(device) for name, value in prompts_to_tensors(processor, prompts).items()}
    return cast(Any, model).get_conditional_embeddings(batch_size=len(prompts), **tokens)


def predict(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    files: Iterable[Path],
    embeddings: torch.Tensor,
    batch_size: int,
) -> Iterator[Prediction]:
    """
    Asks the model for every prompt on every image; a batch may hold prompts of several images.

    Args:
        model (`torch.nn.Module`): a CLIPSeg with or without adapters, in eval mode on the embeddings' device.
        processor ([`ProcessorMixin`]): prepares the images.
        files (`Iterable[Path]`): the images' files, which are read one after the other.
        embeddings (`torch.Tensor` of shape `(prompts, projection_dim)`): see [`embed_prompts`].
        batch_size (`int`): pairs of image and prompt that go through the model at once.

    Yields:
        [`Prediction`]: of the first image with each prompt, then of the second, and so on.

    Raises:
        InputError: a file is no image, or the model's logits are not finite.
    """
    pairs = _pairs(processor, files, len(embeddings))
    while batch := list(islice(pairs, batch_size)):
        pixel_values = torch.stack([pixels for _, _, pixels, _ in batch]).to(embeddings.device)
        conditions = embeddings[[prompt for _, _, _, prompt in batch]]
        with torch.no_grad():
            output = model(pixel_values=pixel_values, conditional_embeddings=conditions)
        masks = output.logits.float().cpu().reshape(len(batch), *pixel_values.shape[-2:])
        for (file, image, _, prompt), logits in zip(batch, masks, strict=True):
            if not torch.isfinite(logits).all():
                raise InputError(f"{file}: the model's logits are not finite; its weights are broken, train it again")
            yield Prediction(file, image, prompt, resize_logits(logits, image.size))


def _pairs(
    processor: ProcessorMixin, files: Iterable[Path], prompts: int
) -> Iterator[tuple[Path, Image.Image, torch.Tensor, int]]:
    for file in files:
        image = open_image(file)
        pixel_values = image_to_tensor(processor, image)
        for prompt in range(prompts):
            yield file, image, pixel_values, prompt


def resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Stretches the logits of the model's square over the image, bilinearly.

    Args:
        logits (`torch.Tensor` of shape `(side, side)`): float.
        size (`tuple[int, int]`): width and height of the image, in Pillow's order.

    Returns:
        `torch.Tensor` of shape `(height, width)`.
    """
    width, height = size
    return functional.interpolate(logits[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
