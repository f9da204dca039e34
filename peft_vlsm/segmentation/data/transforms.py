"""
From pictures and prompts to the tensors that the model takes, by the model's own processor.

The processor says everything: the image size, how to resample, mean and standard deviation, the number of tokens.
Training sets its size once ([`fit_processor`]) and saves it beside the adapter, so that prediction sees images as
training did.
"""

import numpy as np
import torch
from PIL import Image
from transformers import PretrainedConfig

from peft_vlsm.architectures.declaration import config_value
from peft_vlsm.architectures.families import family_of_config
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.processor import Processor


def fit_processor(processor: Processor, config: PretrainedConfig, image_size: int | None = None) -> int:
    """
    Sets the processor's square image size, and caps its tokens at what the text encoder takes.

    Args:
        processor ([`Processor`]): holds `image_processor` and `tokenizer`; changed in place.
        config ([`PretrainedConfig`]): the model's configuration.
        image_size (`int`, *optional*): side of the square in pixels, a multiple of the vision encoder's patch size.
            Default: the processor's own.

    Returns:
        `int`: the side of the square in pixels.

    Raises:
        InputError: the size is no multiple of the patch size, or the processor has no square size of its own and none
            was given.
    """
    family, config = family_of_config(config)
    assert family is not None and family.patch_size is not None
    stored = dict(processor.image_processor.size)
    own = {name: stored[name] for name in stored if stored[name] is not None}
    if image_size is None and (own.keys() != {"height", "width"} or own["height"] != own["width"]):
        raise InputError(f"the processor's own image size {own} is not a square; give --image_size")
    side = own["height"] if image_size is None else image_size
    patch = config_value(config, family.patch_size)
    if side % patch or side < patch:
        near = max(1, side // patch) * patch
        raise InputError(f"--image_size {side} must be a multiple of the model's patch size {patch}, such as {near}")
    built = side if family.fixed_image_size is None else config_value(config, family.fixed_image_size)
    if side != built:
        raise InputError(f"--image_size {side}: the model was built for images of {built}; load it for this size")
    processor.image_processor.size = {"height": side, "width": side}
    processor.image_processor.do_resize = True
    positions = config.text_config.max_position_embeddings
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, positions)
    return side


def image_to_tensor(processor: Processor, image: Image.Image) -> torch.Tensor:
    """Resizes and normalises an RGB image; returns `pixel_values` of shape `(3, side, side)`, float32."""
    return processor.image_processor(image, return_tensors="pt")["pixel_values"][0]


def mask_to_tensor(mask: np.ndarray, side: int) -> torch.Tensor:
    """Resizes a boolean mask `(height, width)` by the nearest pixel; returns `(side, side)` of 0 and 1, float32."""
    resized = Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized, dtype=np.float32))


def prompts_to_tensors(processor: Processor, prompts: list[str]) -> dict[str, torch.Tensor]:
    """
    Tokenizes prompts, padded to the longest of them and truncated at the tokenizer's `model_max_length`.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids` and `attention_mask`, both of shape `(len(prompts), tokens)`.
    """
    tokens = processor.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
