"""Runs a model of any family on a batch: the logits of its masks, and of presence where the family tells it."""

from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from peft_vlsm.architectures import Architecture, architecture_of, mask_logits_of
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.losses import dice_bce_loss

INPUTS = ("pixel_values", "input_ids", "attention_mask")


@dataclass(frozen=True)
class SegmenterOutput:
    """
    What a model says about a batch of images, each with its prompt.

    Args:
        logits (`torch.Tensor` of shape `(B, side, side)`): above 0 where the mask is.
        presence (`torch.Tensor` of shape `(B,)`, *optional*):
            above 0 where the image has what the prompt names. None for families that do not say.
    """

    logits: torch.Tensor
    presence: torch.Tensor | None


def family_of(model: torch.nn.Module) -> Architecture:
    """
    The declaration of the model inside whatever wraps it: adapters, DistributedDataParallel, torch.compile.

    Raises:
        InputError: it holds no model that gives text-prompted masks.
    """
    for module in model.modules():
        family = architecture_of(module)
        if family is not None and family.masks is not None:
            return family
    raise InputError(f"a {type(model).__name__} gives no text-prompted masks")


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The model of transformers inside whatever wraps it."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def run_segmenter(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> SegmenterOutput:
    """
    Runs the model on a batch of [`SegmentationDataset.collate`].

    Args:
        model (`torch.nn.Module`): of a family with masks, with or without adapters.
        batch (`dict[str, torch.Tensor]`): on the model's device.

    Returns:
        [`SegmenterOutput`]: the logits at the size of the batch's images.
    """
    family = family_of(model)
    output = model(**{name: batch[name] for name in INPUTS}, **dict.fromkeys(family.flags, True))
    logits = mask_logits_of(family, output, len(batch["pixel_values"]))
    presence = None if family.presence is None else output[family.presence].reshape(len(logits))
    return SegmenterOutput(_resized(logits, batch["pixel_values"].shape[-2:]), presence)


def _resized(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if logits.shape[-2:] == size:
        return logits
    return functional.interpolate(logits[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def segmentation_loss(output: SegmenterOutput, masks: torch.Tensor) -> torch.Tensor:
    """
    The loss of each pair of image and prompt: the paper's on the masks, and cross-entropy on presence.

    Args:
        output ([`SegmenterOutput`]): of the batch.
        masks (`torch.Tensor` of shape `(B, side, side)`): 0 and 1. An empty one says that what the prompt names is not
            in the image.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32: [`dice_bce_loss`], and the binary cross-entropy of `output.presence`
        where the family has it (SAM3).
    """
    loss = dice_bce_loss(output.logits, masks)
    if output.presence is None:
        return loss
    present = masks.flatten(1).any(dim=1).float()
    return loss + functional.binary_cross_entropy_with_logits(output.presence.float(), present, reduction="none")
