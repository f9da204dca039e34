"""How sure a mean over images is: a bootstrap interval that draws whole images, with all that was measured on them."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
# Draws at a time: bounds the memory that many images take.
BATCH = 100


def bootstrap_interval(
    values: np.ndarray, images: Sequence[object], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """
    The 95 % confidence interval of a mean, by the percentiles of means over images that are drawn with replacement.

    Answers to several prompts about one image are not independent of each other, and so count as one draw: intervals
    would else be too narrow.

    Args:
        values (`np.ndarray` of shape `(N,)`): a score of each answer.
        images (`Sequence[object]` of length N): what names each answer's image; hashable.
        resamples (`int`, defaults to 1000): how many times images are drawn, as many as there are.
        seed (`int`, defaults to 0): the same seed gives the same interval, to the last bit.

    Returns:
        `tuple[float, float]`: lower and upper end; both not a number where there are fewer than two images.
    """
    places = {image: place for place, image in enumerate(dict.fromkeys(images))}
    groups = np.array([places[image] for image in images])
    if len(places) < 2:
        return float("nan"), float("nan")
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    result = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
