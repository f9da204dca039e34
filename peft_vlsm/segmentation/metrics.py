"""Dice and IoU as an [`evaluate.Metric`]: each image by itself, then the mean over images, as in the paper."""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

COUNTS = ("both", "predicted", "true")


def mask_overlap(predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """
    Counts pixels, which is all that Dice and IoU need.

    Args:
        predictions (`torch.Tensor` of shape `(B, H, W)`): the predicted masks, boolean or 0 and 1.
        references (`torch.Tensor` of shape `(B, H, W)`): the true masks, boolean or 0 and 1.

    Returns:
        `torch.Tensor` of shape `(B, 3)`, int64: pixels in both masks, in the predicted one, in the true one.
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape"
        )
    predicted, true = predictions.bool().flatten(1), references.bool().flatten(1)
    return torch.stack([(predicted & true).sum(1), predicted.sum(1), true.sum(1)], dim=1)


class SegmentationMetric(evaluate.Metric):
    """
    Mean Dice and mean IoU over images. An empty mask that is predicted empty counts 1, one that is not counts 0.

    Masks become three counts as soon as they are added, so nothing large is kept or gathered. Works without the Hub.

    Args:
        gather (`Callable[[torch.Tensor], torch.Tensor]`, *optional*): joins the counts of all processes. Give
            `accelerator.gather_for_metrics`, which drops the rows that padded an uneven last batch. Default: this
            process alone.

    Example:

    ```python
    >>> metric = SegmentationMetric()
    >>> metric.add_batch(predictions=logits > 0, references=masks)
    >>> metric.compute()
    {'dice': 0.91, 'iou': 0.84}
    ```
    """

    def __init__(self, gather: Callable[[torch.Tensor], Any] = lambda counts: counts):
        super().__init__(keep_in_memory=True)
        self.gather = gather

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean Dice and IoU over images of binary masks.",
            citation="",
            inputs_description="predictions and references: boolean tensors of shape (B, H, W)",
            features=datasets.Features({count: datasets.Value("int64") for count in COUNTS}),
            format="numpy",
        )

    def add_batch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, predictions: torch.Tensor, references: torch.Tensor
    ) -> None:
        """
        Adds a batch of masks, of all processes where `gather` was given.

        Args:
            predictions (`torch.Tensor` of shape `(B, H, W)`): the predicted masks, boolean or 0 and 1.
            references (`torch.Tensor` of shape `(B, H, W)`): the true masks, boolean or 0 and 1.
        """
        counts = self.gather(mask_overlap(predictions, references))
        super().add_batch(**dict(zip(COUNTS, counts.cpu().numpy().T, strict=True)))

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, both: np.ndarray, predicted: np.ndarray, true: np.ndarray
    ) -> dict[str, float]:
        size, union = predicted + true, predicted + true - both
        return {
            "dice": float(np.divide(2 * both, size, out=np.ones(len(size)), where=size > 0).mean()),
            "iou": float(np.divide(both, union, out=np.ones(len(union)), where=union > 0).mean()),
        }
