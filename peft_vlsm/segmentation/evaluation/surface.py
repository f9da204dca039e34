"""How far apart the borders of two masks are: the 95th percentile of the Hausdorff distance (HD95), in pixels."""

import math

import numpy as np
from scipy import ndimage

PERCENTILE = 95


def hausdorff_95(predicted: np.ndarray, true: np.ndarray) -> float:
    """
    The larger of two distances: 95 % of the predicted mask's border pixels lie within one of the true border, and 95 %
    of the true mask's border pixels within the other of the predicted border.

    A border pixel belongs to the mask and touches, by a side, a pixel outside of it or the image's edge. Distances are
    Euclidean between pixel centres; percentiles are interpolated linearly. This is what monai's
    `compute_hausdorff_distance(percentile=95)` measures.

    Args:
        predicted (`np.ndarray` of shape `(height, width)`): boolean.
        true (`np.ndarray` of shape `(height, width)`): boolean.

    Returns:
        `float`: in pixels. Both masks empty: 0. One of them empty: the length of the image's diagonal, which no
        distance within the image exceeds.
    """
    if not predicted.any() and not true.any():
        return 0.0
    if not predicted.any() or not true.any():
        return math.hypot(*true.shape)
    # Nothing outside the box of both masks changes a border or a distance, and the box is often small.
    (box,) = ndimage.find_objects((predicted | true).astype(np.uint8))
    predicted_border, true_border = _border(predicted[box]), _border(true[box])
    distances = (_distance_to(true_border)[predicted_border], _distance_to(predicted_border)[true_border])
    return max(float(np.percentile(each, PERCENTILE)) for each in distances)


def _border(mask: np.ndarray) -> np.ndarray:
    return mask & np.logical_not(ndimage.binary_erosion(mask))


def _distance_to(border: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(np.logical_not(border)))
