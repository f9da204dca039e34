"""A model on a data set: Dice, IoU and loss over all images."""

from typing import cast

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from peft_vlsm.segmentation.evaluation.metrics import SegmentationMetric
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> dict[str, float]:
    """
    Evaluates in eval mode, at the image size of the loader's batches.

    Args:
        model (`torch.nn.Module`): is left in eval mode.
        loader (`DataLoader`): gives batches of [`SegmentationDataset.collate`]; prepared by `accelerator` where there
            are several processes, of which each then gets the figures of all.
        accelerator ([`~accelerate.Accelerator`]): gathers the figures of all processes; rows that pad a last batch
            count once.

    Returns:
        `dict[str, float]`: `dice` and `iou` (see [`SegmentationMetric`]) and `loss` (see [`segmentation_loss`]), means
        over images.
    """
    model.eval()
    metric = SegmentationMetric(gather=accelerator.gather_for_metrics)
    losses = []
    for batch in loader:
        output = run_segmenter(model, batch)
        metric.add_batch(predictions=output.logits > 0, references=batch["masks"])
        losses.append(accelerator.gather_for_metrics(segmentation_loss(output, batch["masks"])))
    scores = cast(dict[str, float], metric.compute())
    return {**scores, "loss": torch.cat(losses).mean().item()}
