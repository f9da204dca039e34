"""Measured values to grey levels: a window of them is stretched over 0 to 255, and what lies outside is cut."""

import numpy as np

LOWEST_PERCENTILE, HIGHEST_PERCENTILE = 0.5, 99.5


def to_grey(values: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """
    Stretches a window of values over the grey levels.

    Args:
        values (`np.ndarray`): numbers of any range; what is not finite counts as the window's lower end.
        window (`tuple[float, float]`, *optional*): the values that become 0 and 255. Default: the percentiles 0.5 and
            99.5 of all finite values. An empty window, as that of a constant image, gives 0 everywhere.

    Returns:
        `np.ndarray` of the same shape and type `uint8`.
    """
    finite = np.isfinite(values)
    if window is None:
        ends = np.percentile(values[finite], (LOWEST_PERCENTILE, HIGHEST_PERCENTILE)) if finite.any() else (0, 0)
        window = float(ends[0]), float(ends[1])
    low, high = window
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    levels = (np.where(finite, values, low).astype(np.float32) - low) * np.float32(255 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
