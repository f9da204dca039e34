"""Reads the text-prompted mask logits from a family's output, whatever its shape there."""

from typing import Any

import torch

from .declaration import Architecture


def mask_logits_of(family: Architecture, output: Any, prompts: int) -> torch.Tensor:
    """
    The mask logits of a batch of images, each with a prompt of its own.

    Args:
        family (`Architecture`): the model's declaration.
        output (`~transformers.utils.ModelOutput`): what the model gave for the batch.
        prompts (`int`): the size of the batch, B.

    Returns:
        `torch.Tensor` of shape `(B, H, W)`: above 0 where the mask is; H and W are the model's own.

    Raises:
        `ValueError`: if the family gives no masks, this output has none, or they do not pair images and prompts.
    """
    if family.masks is None:
        raise ValueError(f"{family.name} gives no text-prompted masks: its declaration names none.")
    logits = output[family.masks] if family.masks in output else None
    if logits is None:
        raise ValueError(f"the output of {family.name} has no {family.masks!r}; was it asked for?")
    if logits.dim() == 2 and prompts == 1:
        # CLIPSeg drops the batch's axis where it holds one sample.
        logits = logits[None]
    if logits.dim() == 4 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.dim() == 4 and logits.shape[:2] == (prompts, prompts):
        # Every image with every prompt, as GroupViT gives them.
        logits = logits[torch.arange(prompts), torch.arange(prompts)]
    if logits.dim() != 3 or len(logits) != prompts:
        raise ValueError(
            f"{family.masks!r} of {family.name} has shape {tuple(logits.shape)}; allowed: a mask for each of the "
            f"{prompts} pairs of image and prompt."
        )
    return logits
