"""The task side: data, prompts, models on disk, training, evaluation, publishing and prediction, a room each.

The names below load when they are asked for: `import peft_vlsm` alone needs none of the metrics' libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.dataset import SegmentationDataset
    from .evaluation.metrics import SegmentationMetric
    from .models.finetuned import load_base, load_finetuned
    from .models.segmenter import run_segmenter, segmentation_loss

_PLACES = {
    "SegmentationDataset": ".data.dataset",
    "SegmentationMetric": ".evaluation.metrics",
    "load_base": ".models.finetuned",
    "load_finetuned": ".models.finetuned",
    "run_segmenter": ".models.segmenter",
    "segmentation_loss": ".models.segmenter",
}

__all__ = [
    "SegmentationDataset",
    "SegmentationMetric",
    "load_base",
    "load_finetuned",
    "run_segmenter",
    "segmentation_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)
