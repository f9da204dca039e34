"""Images and masks, opened by Pillow and checked: one that cannot be used is named, never guessed at."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from peft_vlsm.segmentation.data.mask_levels import check_levels
from peft_vlsm.segmentation.errors import InputError

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@dataclass(frozen=True)
class ImageBytes:
    """
    An image file's content that lies in no file of its own, such as a cell of a table.

    Args:
        name (`str`): what messages call it.
        data (`bytes`): the content of a PNG, JPEG, ... file.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


ImageSource = str | Path | ImageBytes


def open_image(source: ImageSource) -> Image.Image:
    """
    Reads an image.

    Args:
        source (`str`, `Path` or [`ImageBytes`]): an image in any format that Pillow reads, with 8 bits a channel or
            fewer.

    Returns:
        `PIL.Image.Image`: the image in mode RGB, upright (an EXIF orientation is applied). Transparency is dropped.

    Raises:
        InputError: the file is missing, empty, damaged, no image, has more than 8 bits a channel or more than one
            page, or has more pixels than Pillow's `MAX_IMAGE_PIXELS`.
    """
    return _open(source, "RGB")


def open_mask(source: ImageSource) -> np.ndarray:
    """
    Reads a mask: what is brighter than half of white belongs to the object.

    Args:
        source (`str`, `Path` or [`ImageBytes`]): an image of 0 and 255, also by a palette; see [`check_levels`] for
            how much grey its edges may have. JPEG masks, whose values lie near 0 and 255, are fine.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        InputError: as in [`open_image`], and where the pixels are not black and white (0 and 1, several classes,
            probabilities, colours), or transparency holds a part of the mask.
    """
    grey = np.asarray(_open(source, "L"))
    check_levels(source, grey, lossy=_is_lossy(source))
    return grey > 127


def open_pair(image: ImageSource, mask: ImageSource) -> tuple[Image.Image, np.ndarray]:
    """
    Reads an image and its mask as [`open_image`] and [`open_mask`] do, and checks that they are of one size.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: the image in mode RGB and the mask, `(height, width)` of type `bool`.

    Raises:
        InputError: one of the files cannot be used, or their sizes differ.
    """
    opened, marked = open_image(image), open_mask(mask)
    if opened.size != marked.shape[::-1]:
        raise _size_error(mask, marked.shape[::-1], image, opened.size)
    return opened, marked


def check_pair(image: ImageSource, mask: ImageSource) -> None:
    """
    Checks by their headers alone, and thus quickly, that an image and its mask open and are of one size.

    Raises:
        InputError: one of the files is no image, or their sizes differ.
    """
    image_size, mask_size = upright_size(image), upright_size(mask)
    if image_size != mask_size:
        raise _size_error(mask, mask_size, image, image_size)


def upright_size(source: ImageSource) -> tuple[int, int]:
    """
    Reads an image's width and height from its header, as they are once an EXIF orientation is applied.

    Raises:
        InputError: the file is missing, empty, no image, has more than 8 bits a channel, several pages or too many
            pixels.
    """
    with _reading(source) as file:
        width, height = file.size
        turned = file.getexif().get(_ORIENTATION_TAG) in _ORIENTATIONS_ON_THE_SIDE
        return (height, width) if turned else (width, height)


def _open(source: ImageSource, mode: str) -> Image.Image:
    with _reading(source) as file:
        image = turn_upright(file)
        if mode == "L" and image.has_transparency_data and image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{source}: this mask has transparent pixels; save it in black and white alone")
        return image.convert(mode)


def turn_upright(image: Image.Image) -> Image.Image:
    """By its EXIF orientation; in mode RGBA where it has transparency, in the mode that it had otherwise."""
    upright = ImageOps.exif_transpose(image)
    # Only by way of RGBA does Pillow drop a palette's transparency without a remark.
    return upright.convert("RGBA") if upright.has_transparency_data else upright


def _is_lossy(source: ImageSource) -> bool:
    with _reading(source) as file:
        return file.format in ("JPEG", "MPO", "JPEG2000", "WEBP")


@contextmanager
def _reading(source: ImageSource) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Damaged metadata is Pillow's other reason to warn, and says nothing of pixels.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source.data) if isinstance(source, ImageBytes) else source) as file:
                _check_mode(source, file)
                _check_pages(source, file)
                yield file
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error


_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# Pillow's readers trust a file's structure: damage shows as whatever its bytes then lead to.
_UNREADABLE = (
    *_BOMBS,
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError, OverflowError),
    *(IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError, NotImplementedError),
)
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS_ON_THE_SIDE = (5, 6, 7, 8)


def _check_mode(source: ImageSource, image: Image.Image) -> None:
    if image.mode not in EIGHT_BIT_MODES:
        raise InputError(f"{source} has more than 8 bits a channel (mode {image.mode}); save it as an 8-bit image")


def _check_pages(source: ImageSource, image: Image.Image) -> None:
    # The further pictures of a camera's MPO file are previews, those of a PSD file layers of the first.
    if image.format not in ("MPO", "PSD") and len(list(islice(ImageSequence.Iterator(image), 2))) > 1:
        raise InputError(f"{source} holds several pages or frames; save the one that counts as a file of its own")


def _unreadable(source: ImageSource, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{source} does not exist")
    if isinstance(error, UnidentifiedImageError):
        empty = not source.data if isinstance(source, ImageBytes) else Path(source).stat().st_size == 0
        return InputError(
            f"{source} is not an image that Pillow reads, {'but an empty file' if empty else 'or is damaged'}"
        )
    if isinstance(error, _BOMBS):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        return InputError(f"{source} cannot be read as an image: it has more than {limit} pixels; crop or shrink it")
    return InputError(f"{source} cannot be read as an image: {error}")


def _size_error(mask: ImageSource, mask_size: tuple, image: ImageSource, image_size: tuple) -> InputError:
    mask_text, image_text = (f"{width}x{height}" for width, height in (mask_size, image_size))
    return InputError(f"the mask {mask} is {mask_text} but its image {image} is {image_text}; make them one size")
