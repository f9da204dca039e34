"""
Masks from a model: each prompt and each image is embedded once, and every answer has its image's own size.

Pairs of image and prompt come image by image, so that a batch may hold prompts of several images, and one image's
prompts may lie in several batches ([`EmbeddingReuse`]).
"""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.nn import functional

from peft_vlsm.segmentation.data.transforms import image_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import load_finetuned
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.models.segmenter import SegmenterOutput
from peft_vlsm.segmentation.prediction.embedding_reuse import EmbeddingReuse


@dataclass(frozen=True)
class Query:
    """
    An image and what to ask of it.

    Args:
        source (`Hashable`): where the image is from: its file, say. No two images have the same; messages name it.
        read (`Callable[[], PIL.Image.Image]`): gives the image in mode RGB, upright; called once.
        prompts (`Sequence[int]`): the prompts' places in the list of all prompts.
    """

    source: Hashable
    read: Callable[[], Image.Image]
    prompts: Sequence[int]


@dataclass(frozen=True)
class Prediction:
    """
    What the model says about one image and one prompt.

    Args:
        source (`Hashable`): the query's.
        image (`PIL.Image.Image`): the image in mode RGB, upright.
        prompt (`int`): the prompt's place, counted from 0.
        logits (`torch.Tensor` of shape `(image.height, image.width)`): float32, on the CPU. Above 0 is a probability
            above one half.
        presence (`float`, *optional*): the probability that the image has what the prompt names, 0 to 1. None for
            families that do not say.
    """

    source: Any
    image: Image.Image
    prompt: int
    logits: torch.Tensor
    presence: float | None = None


def check_adapter_name(adapter: str) -> None:
    """Raises [`InputError`] where what `--adapter` names neither exists here nor is a name on the Hub."""
    if not os.path.exists(adapter) and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", adapter):
        raise InputError(f"--adapter {adapter} does not exist; name an output folder of finetune.py, or OWNER/NAME")


def load_predictor(
    adapter: str, base: str | None = None, image_size: int | None = None
) -> tuple[torch.nn.Module, Processor]:
    """
    Loads a fine-tuned model as [`load_finetuned`] does, by what a user says on the command line.

    Args:
        adapter (`str`): the output folder of a fine-tuning run, or an adapter's name on the Hub.
        base (`str`, *optional*): the base model's folder or name. Default: the one that the adapter names.
        image_size (`int`, *optional*): side in pixels of the images, as in [`load_finetuned`].

    Returns:
        `tuple[torch.nn.Module, Processor]`: the model in eval mode, and the processor as training used it.

    Raises:
        InputError: as [`load_finetuned`]; also where `adapter` neither exists nor is a name on the Hub, and where
            `base` is given beside a folder that holds a whole model.
    """
    check_adapter_name(adapter)
    model, processor = load_finetuned(adapter, base, image_size)
    if base is not None and model.name_or_path == str(Path(adapter).resolve()):
        raise InputError(f"--model_name_or_path {base} does nothing: {adapter} holds a whole model; leave it out")
    return model, processor


def check_prompts(processor: Processor, prompts: list[str], flag: str = "--prompt") -> list[str]:
    """
    Checks what the tokenizer makes of prompts.

    Args:
        processor ([`Processor`]): its tokenizer was capped by [`fit_processor`].
        prompts (`list[str]`): not empty, and nor is any of them.
        flag (`str`, defaults to `"--prompt"`): where they are from, for messages.

    Returns:
        `list[str]`: the prompts that are too long for the text encoder, which does not see their ends.

    Raises:
        InputError: two prompts are the same to the model, as "Brain" and "brain" are.
    """
    seen: dict[tuple[int, ...], str] = {}
    for prompt in prompts:
        tokens = tuple(processor.tokenizer(prompt, truncation=True)["input_ids"])
        if tokens in seen:
            raise InputError(f"{flag} {seen[tokens]!r} and {prompt!r} are the same to the model; leave one out")
        seen[tokens] = prompt
    return long_prompts(processor, prompts)


def long_prompts(processor: Processor, prompts: list[str]) -> list[str]:
    """The prompts that are too long for the text encoder, which does not see their ends."""
    whole = processor.tokenizer(prompts, verbose=False)["input_ids"]
    limit = processor.tokenizer.model_max_length
    return [prompt for prompt, tokens in zip(prompts, whole, strict=True) if len(tokens) > limit]


def predict(
    model: torch.nn.Module,
    processor: Processor,
    queries: Iterable[Query],
    prompts: list[str],
    batch_size: int,
) -> Iterator[Prediction]:
    """
    Asks the model for prompts on images; a batch may hold prompts of several images.

    Args:
        model (`torch.nn.Module`): of a family with masks, with or without adapters, in eval mode.
        processor ([`Processor`]): prepares images and prompts; fitted by [`fit_processor`].
        queries (`Iterable[Query]`): images, which are read one after the other, and what to ask of them.
        prompts (`list[str]`): all prompts; at least one.
        batch_size (`int`): pairs of image and prompt that go through the model at once.

    Yields:
        [`Prediction`]: of the first image with each of its prompts, then of the second, and so on.

    Raises:
        InputError: an image cannot be read, or the model's logits are not finite.
    """
    device, dtype = cast(Any, model).device, cast(Any, model).dtype
    tokens = {name: value.to(device) for name, value in prompts_to_tensors(processor, prompts).items()}
    pairs = _pairs(processor, queries)
    with EmbeddingReuse(model) as reuse:
        while batch := list(islice(pairs, batch_size)):
            rows = [pair.prompt for pair in batch]
            inputs = {name: value[rows] for name, value in tokens.items()}
            inputs["pixel_values"] = torch.stack([pair.pixels for pair in batch]).to(device, dtype)
            output = reuse.run(inputs, [pair.source for pair in batch], rows)
            yield from _predictions(batch, output)


@dataclass(frozen=True)
class _Pair:
    source: Hashable
    image: Image.Image
    pixels: torch.Tensor
    prompt: int


def _pairs(processor: Processor, queries: Iterable[Query]) -> Iterator[_Pair]:
    for query in queries:
        image = query.read()
        pixels = image_to_tensor(processor, image)
        for prompt in query.prompts:
            yield _Pair(query.source, image, pixels, prompt)


def _predictions(batch: list[_Pair], output: SegmenterOutput) -> Iterator[Prediction]:
    presence = [None] * len(batch) if output.presence is None else output.presence.float().sigmoid().tolist()
    for pair, logits, present in zip(batch, output.logits.float().cpu(), presence, strict=True):
        if not torch.isfinite(logits).all():
            raise InputError(
                f"{pair.source}: the model's logits are not finite; its weights are broken, train it again"
            )
        yield Prediction(pair.source, pair.image, pair.prompt, resize_logits(logits, pair.image.size), present)


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
