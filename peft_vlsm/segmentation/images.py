"""Image and mask files, opened by Pillow and checked: a file that cannot be used is named, never guessed at."""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from peft_vlsm.segmentation.errors import InputError

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def open_image(path: str | Path) -> Image.Image:
    """
    Reads an image file.

    Args:
        path (`str` or `Path`): a file in any format that Pillow reads, with 8 bits a channel or fewer.

    Returns:
        `PIL.Image.Image`: the image in mode RGB, upright (an EXIF orientation is applied).

    Raises:
        InputError: the file is missing, damaged, no image, has more than 8 bits a channel or more than one page, or is
            suspiciously large.
    """
    return _open(path).convert("RGB")


def open_mask(path: str | Path) -> np.ndarray:
    """
    Reads a mask file: what is brighter than half of white belongs to the object.

    Args:
        path (`str` or `Path`): an image file of 0 and 255. JPEG masks, whose values lie near 0 and 255, are fine.

    Returns:
        `np.ndarray` of shape `(height, width)` and type `bool`.

    Raises:
        InputError: as in [`open_image`], and where a lossless file has marks but none above half (0 and 1 instead of
            0 and 255).
    """
    image = _open(path)
    grey = np.asarray(image.convert("L"))
    if image.format != "JPEG" and 0 < grey.max() < 128:
        raise InputError(f"{path}: the brightest pixel of this mask is {grey.max()}; masks hold 0 and 255")
    return grey > 127


def open_pair(image_path: str | Path, mask_path: str | Path) -> tuple[Image.Image, np.ndarray]:
    """
    Reads an image and its mask as [`open_image`] and [`open_mask`] do, and checks that they are of one size.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: the image in mode RGB and the mask, `(height, width)` of type `bool`.

    Raises:
        InputError: one of the files cannot be used, or their sizes differ.
    """
    image, mask = open_image(image_path), open_mask(mask_path)
    if image.size != mask.shape[::-1]:
        raise _size_error(mask_path, mask.shape[::-1], image_path, image.size)
    return image, mask


def check_pair(image_path: str | Path, mask_path: str | Path) -> None:
    """
    Checks by their headers alone, and thus quickly, that an image and its mask open and are of one size.

    Raises:
        InputError: one of the files is no image, or their sizes differ.
    """
    image_size, mask_size = _header_size(image_path), _header_size(mask_path)
    if image_size != mask_size:
        raise _size_error(mask_path, mask_size, image_path, image_size)


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            _check_mode(path, file)
            _check_pages(path, file)
            image = ImageOps.exif_transpose(file)
            image.format = file.format
            return image
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _header_size(path: str | Path) -> tuple[int, int]:
    try:
        with Image.open(path) as file:
            _check_mode(path, file)
            _check_pages(path, file)
            width, height = file.size
            turned = file.getexif().get(_ORIENTATION_TAG) in _ORIENTATIONS_ON_THE_SIDE
            return (height, width) if turned else (width, height)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS_ON_THE_SIDE = (5, 6, 7, 8)


def _check_mode(path: str | Path, image: Image.Image) -> None:
    if image.mode not in EIGHT_BIT_MODES:
        raise InputError(f"{path} has more than 8 bits a channel (mode {image.mode}); save it as an 8-bit image")


def _check_pages(path: str | Path, image: Image.Image) -> None:
    # The further pictures of a camera's MPO file are previews, those of a PSD file layers of the first.
    if image.format not in ("MPO", "PSD") and len(list(islice(ImageSequence.Iterator(image), 2))) > 1:
        raise InputError(f"{path} holds several pages or frames; save the one that counts as a file of its own")


def _unreadable(path: str | Path, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist")
    if isinstance(error, UnidentifiedImageError):
        return InputError(f"{path} is not an image that Pillow reads, or is damaged")
    return InputError(f"{path} cannot be read as an image: {error}")


def _size_error(mask_path: str | Path, mask_size: tuple, image_path: str | Path, image_size: tuple) -> InputError:
    mask_text, image_text = (f"{width}x{height}" for width, height in (mask_size, image_size))
    return InputError(
        f"the mask {mask_path} is {mask_text} but its image {image_path} is {image_text}; make them one size"
    )
