"""What a synthetic scene is: an image and the objects in it, each with the words that may name it."""

from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 128
KINDS = ("colour", "greyscale", "phantom")
SHAPES = ("circle", "oval", "square", "triangle", "diamond", "star", "cross", "ring")
COLOURS = {
    "red": (215, 35, 35),
    "green": (35, 165, 55),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 20),
    "purple": (135, 45, 175),
    "pink": (250, 150, 195),
    "cyan": (40, 205, 220),
    "brown": (120, 70, 35),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
BRIGHTNESSES = {"dark": (35, 35, 35), "gray": (125, 125, 125), "bright": (220, 220, 220)}
# Half of an object's extent in pixels; the gaps between the ranges keep the words apart.
SIZES = {"small": (11.0, 13.0), "medium": (16.0, 19.0), "large": (23.0, 27.0)}


@dataclass(frozen=True)
class SceneObject:
    """
    One object of a scene.

    Args:
        shape (`str`): the noun that names it, such as `"circle"` or `"ring"`.
        colour (`str`): a key of `COLOURS`, or of `BRIGHTNESSES` in scenes without colour.
        size (`str`): a key of `SIZES`; empty for the regions of a phantom.
        location (`str`): `"top left"` ... `"bottom right"`; empty for the regions of a phantom.
        mask (`np.ndarray` of shape `(IMAGE_SIZE, IMAGE_SIZE)`): bool, True on the object's visible pixels.
    """

    shape: str
    colour: str
    size: str
    location: str
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """
    One image and the objects in it.

    Args:
        kind (`str`): one of `KINDS`.
        image (`np.ndarray` of shape `(IMAGE_SIZE, IMAGE_SIZE, 3)`): uint8, RGB.
        objects (`list[SceneObject]`): at least two, whose masks do not overlap.
    """

    kind: str
    image: np.ndarray
    objects: list[SceneObject]
