"""Says in words what a mask covers: its shape, colour, size, number and location, for prompts in MedVLSM's manner.

A part is a connected component of the mask that is not tiny beside the largest one. Number and location speak of the
parts, shape of the largest part, colour and size of the whole mask.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

# A component below this share of the largest one's area is a speck, not a part.
MINIMUM_PART = 0.05
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Long lists of places would push the rest of a prompt out of the text encoder's 77 tokens.
MAXIMUM_LOCATIONS = 3

# Shares of the image's area. MedVLSM's rows call 2 to 8 % small, 16 % medium and 21 % or more large.
SMALL_BELOW, LARGE_FROM = 0.1, 0.2

# How much of its convex hull a part must fill to have a shape at all.
MINIMUM_SOLIDITY = 0.85
# A triangle's hull fills 1/2 of the smallest rectangle around it, an ellipse's pi/4, a rectangle's all: the midpoints.
TRIANGLE_BELOW, RECTANGLE_FROM = (0.5 + np.pi / 4) / 2, (1 + np.pi / 4) / 2
ELONGATED_FROM = 1.2

# Shares of the image's brightest level; a greyscale image's window is arbitrary, so no absolute level means anything.
DARK_BELOW, BRIGHT_FROM = 0.4, 0.8
# The end of each hue in degrees.
HUES = (
    (15, "red"),
    (45, "orange"),
    (70, "yellow"),
    (170, "green"),
    (200, "cyan"),
    (260, "blue"),
    (290, "purple"),
    (345, "pink"),
    (360, "red"),
)


@dataclass(frozen=True)
class MaskAttributes:
    """
    What a mask covers, in words.

    Args:
        shape (`str`): `"circle"`, `"oval"`, `"square"`, `"rectangle"`, `"triangle"` or `"irregular"`.
        colour (`str`): `"dark"`, `"gray"` or `"bright"` in a greyscale image, else the name of a colour.
        size (`str`): `"small"`, `"medium"` or `"large"`.
        number (`str`): of parts, `"one"` to `"nine"`, then `"many"`.
        location (`str`): `"center"`, `"top left"`, ... of the largest parts, such as `"left, bottom right"`.
    """

    shape: str
    colour: str
    size: str
    number: str
    location: str


def measure_attributes(image: np.ndarray, mask: np.ndarray) -> MaskAttributes:
    """
    Measures the attributes of one mask.

    Args:
        image (`np.ndarray` of shape `(height, width)` or `(height, width, 3)`):
            uint8, greyscale or RGB; an RGB image with three equal channels counts as greyscale.
        mask (`np.ndarray` of shape `(height, width)`): bool, with at least one True.

    Returns:
        [`MaskAttributes`]: the words.

    Raises:
        `ValueError`: wrong shape or dtype, or an empty mask, of which there is nothing to say.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}, not uint8 (height, width) or (height, width, 3)"
        )
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise ValueError(f"mask is {mask.dtype} of shape {mask.shape}, not bool of the image's {image.shape[:2]}")
    if not mask.any():
        raise ValueError("mask is empty, so it has no attributes")
    labels, parts = _label_parts(mask)
    centers = ndimage.center_of_mass(mask, labels, parts[:MAXIMUM_LOCATIONS])
    locations = dict.fromkeys(_name_location(row, column, mask.shape) for row, column in centers)
    return MaskAttributes(
        shape=_name_shape(labels == parts[0]),
        colour=_name_colour(image, mask),
        size=_name_size(mask.mean()),
        number=NUMBERS[len(parts) - 1] if len(parts) <= len(NUMBERS) else "many",
        location=", ".join(locations),
    )


def _label_parts(mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The components' labels, and those of the parts, the largest first; a shared corner connects pixels."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3, 3)), output=labels)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    order = np.argsort(-areas, kind="stable")
    return labels, [int(label) for label in order if areas[label] >= MINIMUM_PART * areas.max()]


def _name_shape(part: np.ndarray) -> str:
    hull = ConvexHull(_outline_corners(part))
    # In two dimensions scipy's `volume` is the area.
    if part.sum() < MINIMUM_SOLIDITY * hull.volume:
        return "irregular"
    short, long = _smallest_rectangle(hull.points[hull.vertices])
    fill = hull.volume / (short * long)
    if fill < TRIANGLE_BELOW:
        return "triangle"
    elongated = long >= ELONGATED_FROM * short
    if fill >= RECTANGLE_FROM:
        return "rectangle" if elongated else "square"
    return "oval" if elongated else "circle"


def _outline_corners(part: np.ndarray) -> np.ndarray:
    """The corners of each row's first and last pixel, (N, 2): their hull is the part's hull."""
    rows = np.flatnonzero(part.any(axis=1))
    first = part[rows].argmax(axis=1)
    end = part.shape[1] - part[rows, ::-1].argmax(axis=1)
    return np.column_stack([np.concatenate([rows, rows + 1] * 2), np.concatenate([first, first, end, end])])


def _smallest_rectangle(polygon: np.ndarray) -> tuple[float, float]:
    """Short and long side of the smallest rectangle round a convex polygon: one of them lies on an edge."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    directions = edges / np.linalg.norm(edges, axis=1, keepdims=True)
    normals = directions[:, ::-1] * (-1, 1)
    sides = np.stack([np.ptp(polygon @ directions.T, axis=0), np.ptp(polygon @ normals.T, axis=0)])
    short, long = np.sort(sides[:, sides.prod(axis=0).argmin()])
    return float(short), float(long)


def _name_colour(image: np.ndarray, mask: np.ndarray) -> str:
    if image.ndim == 3 and any((image[..., 0] != image[..., channel]).any() for channel in (1, 2)):
        return _name_hue(*np.median(image[mask], axis=0))
    grey = image if image.ndim == 2 else image[..., 0]
    level = np.median(grey[mask]) / max(np.percentile(grey, 99.5), 1)
    return "dark" if level < DARK_BELOW else "bright" if level >= BRIGHT_FROM else "gray"


def _name_hue(red: float, green: float, blue: float) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if value < 0.2:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.8 else "gray"
    name = next(name for end, name in HUES if 360 * hue <= end)
    if name in ("red", "orange") and value < 0.6 and saturation < 0.8:
        return "brown"
    return "pink" if name == "red" and saturation < 0.5 else name


def _name_size(share: float) -> str:
    return "small" if share < SMALL_BELOW else "large" if share >= LARGE_FROM else "medium"


def _name_location(row: float, column: float, shape: tuple[int, ...]) -> str:
    vertical = ("top", "", "bottom")[int(3 * (row + 0.5) / shape[0])]
    horizontal = ("left", "", "right")[int(3 * (column + 0.5) / shape[1])]
    return f"{vertical} {horizontal}".strip() or "center"
