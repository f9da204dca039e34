"""
Images and their masks varied together, before they are resized; off by default, as in the paper.

Everything is drawn from one generator, which the caller seeds by run, epoch and row. A prompt that names a side is
changed with a mirrored image. A crop, a scale and a rotation leave prompts as they are: "top left" may then be a
little off, which is why they should be small where prompts name locations.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from peft_vlsm.segmentation.errors import InputError

LARGEST = {"rotation": 180.0, "scale": 0.9, "crop": 0.9, "colour": 0.9}
SIDES = (("left", "right"), ("leftmost", "rightmost"), ("leftward", "rightward"))
HEIGHTS = (("top", "bottom"), ("topmost", "bottommost"), ("upper", "lower"), ("uppermost", "lowermost"))
# The heart's left ventricle stays one in a mirrored image: there "left" is a name and no place.
_HEART = (
    r"(?![\s-]+(?:ventric|atri|heart|coronary|main[\s-]+coronary|circumflex|anterior[\s-]+descending"
    r"|bundle[\s-]+branch))"
)


@dataclass(frozen=True)
class Draw:
    """What was drawn for one image: the two flips, degrees, factor of size, and the other changes' own generator."""

    flip: bool
    vertical_flip: bool
    degrees: float
    factor: float
    generator: np.random.Generator


@dataclass(frozen=True)
class Augmentation:
    """
    How far images may be varied. What is 0 or False is off.

    Args:
        flip (`bool`): mirror half of the images left to right.
        vertical_flip (`bool`): mirror half of the images top to bottom.
        rotation (`float`): up to so many degrees either way about the centre, at most 180; corners are filled black.
        scale (`float`): enlarge or shrink about the centre, by a factor from `1 - scale` to `1 + scale`; at most 0.9.
        crop (`float`): take a window whose width and height are each at least `1 - crop` of the image's, and that
            holds a pixel of the object where there is one; at most 0.9.
        colour (`float`): brightness, contrast and saturation, each by a factor from `1 - colour` to `1 + colour`; at
            most 0.9.

    Raises:
        InputError: a value lies outside its range.
    """

    flip: bool = False
    vertical_flip: bool = False
    rotation: float = 0.0
    scale: float = 0.0
    crop: float = 0.0
    colour: float = 0.0

    def __post_init__(self):
        for name, largest in LARGEST.items():
            if not 0 <= getattr(self, name) <= largest:
                raise InputError(f"--augment_{name} {getattr(self, name)} must lie between 0 and {largest:g}")

    def draw(self, generator: np.random.Generator) -> Draw:
        """Draws what happens to one image; `apply` and `prompt` then agree about its flips."""
        numbers = generator.random(4)
        return Draw(
            flip=self.flip and numbers[0] < 0.5,
            vertical_flip=self.vertical_flip and numbers[1] < 0.5,
            degrees=self.rotation * (2 * numbers[2] - 1),
            factor=1 + self.scale * (2 * numbers[3] - 1),
            generator=generator,
        )

    def apply(self, draw: Draw, image: Image.Image, mask: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        """
        Varies an image and its mask. Where turning and scaling would move all of the object out of sight, they are
        left out.

        Args:
            draw ([`Draw`]): of this image; used once.
            image (`PIL.Image.Image`): in mode RGB.
            mask (`np.ndarray` of shape `(height, width)` and type `bool`): its mask.

        Returns:
            `tuple[PIL.Image.Image, np.ndarray]`: both anew, still of one size.
        """
        marked = Image.fromarray(mask)
        if draw.flip:
            image, marked = (item.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for item in (image, marked))
        if draw.vertical_flip:
            image, marked = (item.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for item in (image, marked))
        if draw.degrees or draw.factor != 1:
            image, marked = _turn(image, marked, draw.degrees, draw.factor)
        if self.crop:
            box = _window(np.asarray(marked), self.crop, draw.generator)
            image, marked = image.crop(box), marked.crop(box)
        if self.colour:
            image = _recolour(image, self.colour, draw.generator)
        return image, np.asarray(marked)

    def prompt(self, draw: Draw, prompt: str) -> str:
        """The prompt of the image as it then is; see [`mirror_prompt`]."""
        prompt = mirror_prompt(prompt) if draw.flip else prompt
        return mirror_prompt(prompt, vertical=True) if draw.vertical_flip else prompt


def mirror_prompt(prompt: str, vertical: bool = False) -> str:
    """
    Swaps the sides that a prompt names: whole words, in the case that they have. The left and right chambers and
    vessels of the heart ("left ventricle", "right atrial") are names and stay.

    Args:
        prompt (`str`): such as "two polyps at the Top Left".
        vertical (`bool`): swap top and bottom, upper and lower, instead of left and right.

    Returns:
        `str`: such as "two polyps at the Top Right".
    """
    pairs = HEIGHTS if vertical else SIDES
    swaps = {word: other for pair in pairs for word, other in (pair, pair[::-1])}
    words = re.compile(rf"\b({'|'.join(swaps)})\b{_HEART}", re.IGNORECASE)
    return words.sub(lambda match: _in_case_of(match.group(), swaps[match.group().lower()]), prompt)


def _in_case_of(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def _turn(image: Image.Image, marked: Image.Image, degrees: float, factor: float) -> tuple[Image.Image, Image.Image]:
    """Rotates and scales about the centre; see PIL.Image.transform for the inverse matrix."""
    (x, y), angle = (image.width / 2, image.height / 2), math.radians(degrees)
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    inverse = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    turned = marked.transform(marked.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)
    if marked.getbbox() and not turned.getbbox():
        return image, marked
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR), turned


def _window(mask: np.ndarray, crop: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """A window (left, top, right, bottom); a random pixel of the object, where there is one, lies in it."""
    numbers, place = generator.random(4), generator.random()
    pixels = np.flatnonzero(mask)
    anchor = divmod(int(pixels[int(place * len(pixels))]), mask.shape[1]) if len(pixels) else None
    spans: list[tuple[int, int]] = []
    for axis, whole in enumerate(mask.shape):
        length = max(1, round(whole * (1 - crop * numbers[axis])))
        first, last = 0, whole - length
        if anchor is not None:
            first, last = max(first, anchor[axis] - length + 1), min(last, anchor[axis])
        start = first + int(numbers[2 + axis] * (last - first + 1))
        spans.append((start, start + length))
    (top, bottom), (left, right) = spans
    return left, top, right, bottom


def _recolour(image: Image.Image, colour: float, generator: np.random.Generator) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(1 + colour * (2 * generator.random() - 1))
    return image
