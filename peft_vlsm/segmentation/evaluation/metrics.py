"""
Dice, IoU, precision, recall and HD95 as an [`evaluate.Metric`]: each image by itself, then mean and deviation.

What an image with an empty mask scores is decided here:

| empty is | dice, iou | precision | recall | hd95 |
| --- | --- | --- | --- | --- |
| the predicted and the true mask | 1 | 1 | 1 | 0 |
| the predicted mask alone | 0 | 0, though 0 of 0 | 0 | the image's diagonal |
| the true mask alone | 0 | 0 | 0, though 0 of 0 | the image's diagonal |

An absence that is found is a full success, and an object missed or invented a full failure. Dice stays the harmonic
mean of precision and recall. No image is left out: a model that predicts nothing where an image is hard would else
gain by it, and means of two models would be over different images.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import datasets
import numpy as np
import torch

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.script_path import without_scripts_named

with without_scripts_named("evaluate"):
    import evaluate

Mask = torch.Tensor | np.ndarray
Masks = Mask | Sequence[Mask]

OVERLAP_SCORES = ("dice", "iou", "precision", "recall")
SCORES = (*OVERLAP_SCORES, "hd95")


def mask_overlap(predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """
    Counts pixels, which is all that Dice, IoU, precision and recall need.

    Args:
        predictions (`torch.Tensor` of shape `(B, H, W)`): the predicted masks, boolean or 0 and 1.
        references (`torch.Tensor` of shape `(B, H, W)`): the true masks, boolean or 0 and 1.

    Returns:
        `torch.Tensor` of shape `(B, 3)`, int64: pixels in both masks, in the predicted one, in the true one.

    Raises:
        ValueError: the shapes differ, or a value is neither 0 nor 1.
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape"
        )
    predicted, true = _as_bool("predictions", predictions).flatten(1), _as_bool("references", references).flatten(1)
    return torch.stack([(predicted & true).sum(1), predicted.sum(1), true.sum(1)], dim=1)


def overlap_scores(both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """
    Scores of each image from its pixel counts; see the top of this file for empty masks.

    Args:
        both (`np.ndarray` of shape `(N,)`): pixels in both masks.
        predicted (`np.ndarray` of shape `(N,)`): pixels in the predicted mask.
        true (`np.ndarray` of shape `(N,)`): pixels in the true mask.

    Returns:
        `dict[str, np.ndarray]`: `dice`, `iou`, `precision` and `recall`, each of shape `(N,)`, 0 to 1.
    """
    empty = predicted + true == 0
    parts = {
        "dice": (2 * both, predicted + true),
        "iou": (both, predicted + true - both),
        "precision": (both, predicted),
        "recall": (both, true),
    }
    return {
        name: np.divide(part, whole, out=empty.astype(np.float64), where=whole > 0)
        for name, (part, whole) in parts.items()
    }


class SegmentationMetric(evaluate.Metric):
    """
    Means over images of Dice, IoU, precision, recall and, where asked for, HD95, with standard deviations.

    Masks become a few numbers as soon as they are added, so nothing large is kept or gathered. Works without the Hub.
    What empty masks score stands at the top of this file.

    Args:
        gather (`Callable[[torch.Tensor], torch.Tensor]`, *optional*): joins the numbers of all processes. Give
            `accelerator.gather_for_metrics`, which drops the rows that padded an uneven last batch. Default: this
            process alone.
        hd95 (`bool`, defaults to `False`): measure HD95 too, in pixels of the masks as they are added; see
            [`~peft_vlsm.segmentation.evaluation.surface.hausdorff_95`]. Takes much longer than the others.

    Raises:
        InputError: `hd95` is asked for and scipy is not installed.

    Example:

    ```python
    >>> metric = SegmentationMetric(hd95=True)
    >>> metric.add_batch(predictions=logits > 0, references=masks)
    >>> metric.compute()
    {'dice': 0.91, 'iou': 0.84, 'precision': 0.9, 'recall': 0.93, 'hd95': 4.2, 'dice_std': 0.05, ...}
    ```
    """

    def __init__(self, gather: Callable[[torch.Tensor], Any] = lambda numbers: numbers, hd95: bool = False):
        self.gather = gather
        self.surface = _import_surface() if hd95 else None
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        # evaluate.combine passes masks on by these names. Kept are numbers alone: of a prediction the pixels in both
        # masks, its own and, where asked for, the distance; of a reference its pixels.
        columns = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Means over images of binary masks: Dice, IoU, precision, recall and HD95.",
            citation="",
            inputs_description="predictions and references: boolean masks of shape (B, H, W), or lists of (H, W)",
            features=datasets.Features(columns),
        )

    def add_batch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, predictions: Masks, references: Masks
    ) -> None:
        """
        Adds a batch of masks, of all processes where `gather` was given.

        Args:
            predictions (`torch.Tensor` or `np.ndarray` of shape `(B, H, W)`): the predicted masks, boolean or 0 and
                1. Masks of different sizes come as a list of B masks `(H, W)`.
            references (`torch.Tensor` or `np.ndarray` of shape `(B, H, W)`): the true masks, likewise.

        Raises:
            ValueError: there are no masks, their numbers or their shapes differ, one has another number of
                dimensions, or a value is neither 0 nor 1.
        """
        pairs = _same_sized_pairs(predictions, references)
        both, predicted, true = self.gather(torch.cat([mask_overlap(*pair) for pair in pairs])).cpu().numpy().T
        columns = [both, predicted]
        if self.surface is not None:
            distances = [
                self.surface.hausdorff_95(*masks)
                for pair in pairs
                for masks in zip(*(each.cpu().numpy() for each in pair), strict=True)
            ]
            # float32, since not every accelerator has float64.
            distances = torch.tensor(distances, dtype=torch.float32, device=pairs[0][0].device)
            columns.append(self.gather(distances).cpu().numpy())
        super().add_batch(predictions=np.stack(columns, axis=1), references=true)

    def add(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        prediction: Mask | None = None,
        reference: Mask | None = None,
        predictions: Mask | None = None,
        references: Mask | None = None,
    ) -> None:
        """
        Adds one image: [`SegmentationMetric.add_batch`] of one pair of masks.

        Args:
            prediction (`torch.Tensor` or `np.ndarray` of shape `(H, W)`): the predicted mask.
            reference (`torch.Tensor` or `np.ndarray` of shape `(H, W)`): the true mask.
            predictions, references: the same by the names that evaluate's guides and `evaluate.combine` use here.

        Raises:
            ValueError: a mask is missing, or as in [`SegmentationMetric.add_batch`].
        """
        predicted = predictions if prediction is None else prediction
        true = references if reference is None else reference
        if predicted is None or true is None:
            raise ValueError("give both prediction and reference")
        self.add_batch(predictions=[predicted], references=[true])

    def compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, predictions: Masks | None = None, references: Masks | None = None, per_image: bool = False
    ) -> dict[str, Any]:
        """
        Computes the scores of what was added, and begins anew.

        Args:
            predictions (*optional*): masks to add first; see [`SegmentationMetric.add_batch`].
            references (*optional*): the true masks, with `predictions` only.
            per_image (`bool`, defaults to `False`): return the scores of each image too.

        Returns:
            `dict[str, Any]`: means over images `dice`, `iou`, `precision`, `recall` (0 to 1) and, where asked for,
            `hd95` (pixels), then their standard deviations `dice_std` and so on (over these images: divided by their
            number). With `per_image` also `per_image`: a `dict[str, np.ndarray]` of these scores and of
            `predicted_pixels` and `true_pixels`, in the order in which images were added.

        Raises:
            ValueError: nothing was added.
        """
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        elif predictions is not None or references is not None:
            raise ValueError("give both predictions and references, or neither")
        if self.writer is None:
            raise ValueError("no masks were added; call add_batch first")
        # None is what other processes get where evaluate itself joins them; here there is none.
        return cast(dict[str, Any], super().compute(per_image=per_image))

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, predictions: list[list[float]], references: list[int], per_image: bool
    ) -> dict[str, Any]:
        columns, true = np.array(predictions).T, np.array(references)
        both, predicted = columns[:2].astype(np.int64)
        scores = overlap_scores(both, predicted, true)
        if self.surface is not None:
            scores["hd95"] = columns[2]
        result: dict[str, Any] = {name: float(values.mean()) for name, values in scores.items()}
        result |= {f"{name}_std": float(values.std()) for name, values in scores.items()}
        if per_image:
            result["per_image"] = {**scores, "predicted_pixels": predicted, "true_pixels": true}
        return result


def _as_bool(name: str, masks: torch.Tensor) -> torch.Tensor:
    if masks.dtype == torch.bool:
        return masks
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"{name} hold other values than 0 and 1; give masks, such as logits > 0")
    return masks.bool()


def _same_sized_pairs(predictions: Masks, references: Masks) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The masks as pairs of boolean tensors (B, H, W): one pair, or of a list one for each image."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references differ in number")
    if len(predictions) == 0:
        raise ValueError("there are no masks in predictions and references")
    if isinstance(predictions, (torch.Tensor, np.ndarray)) and isinstance(references, (torch.Tensor, np.ndarray)):
        return [_as_pair(predictions, references)]
    return [
        _as_pair(torch.as_tensor(predicted)[None], torch.as_tensor(true)[None])
        for predicted, true in zip(predictions, references, strict=True)
    ]


def _as_pair(predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
    predicted = torch.as_tensor(predictions)
    true = torch.as_tensor(references).to(predicted.device)
    for name, masks in (("predictions", predicted), ("references", true)):
        # Else rows of one mask would count as images, and a channel as a depth.
        if masks.dim() != 3:
            raise ValueError(
                f"{name} of shape {tuple(masks.shape)} are no masks: give them as (B, H, W), or a list of (H, W)"
            )
    return _as_bool("predictions", predicted), _as_bool("references", true)


def _import_surface() -> ModuleType:
    try:
        from peft_vlsm.segmentation.evaluation import surface
    except ModuleNotFoundError as error:
        raise InputError(f'hd95 needs the package {error.name}: pip install "peft-vlsm[train]"') from error
    return surface
