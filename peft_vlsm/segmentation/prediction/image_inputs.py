"""What a caller of the pipeline may give as an image: a picture, a file, an address on the web or an array."""

import http.client
import re
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peft_vlsm.segmentation.data.images import EIGHT_BIT_MODES, ImageBytes, open_image, turn_upright
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.volumes.slices import read_slice, slices_of

FETCH_SECONDS = 30
FETCH_BYTES = 2**28


class ImageInput:
    """
    An image of a call; two are never the same, though their pixels may be.

    Args:
        number (`int`): its place in the call, counted from 0.
        image (`PIL.Image.Image`, `str`, `Path` or `np.ndarray`): as the caller gave it.
    """

    def __init__(self, number: int, image: Any):
        self.number, self.image = number, image

    def __str__(self) -> str:
        return str(self.image) if isinstance(self.image, (str, Path)) else f"image {self.number}"

    def read(self) -> Image.Image:
        """
        Reads it.

        Returns:
            `PIL.Image.Image`: mode RGB, upright. Transparency is dropped.

        Raises:
            InputError: it is no image, or cannot be read.
        """
        if isinstance(self.image, str) and re.match("https?://", self.image):
            return open_image(ImageBytes(self.image, _fetch(self.image)))
        if isinstance(self.image, (str, Path)):
            return self._read_file(Path(self.image))
        if isinstance(self.image, Image.Image):
            return self._read_picture(self.image)
        if isinstance(self.image, np.ndarray):
            return self._read_array(self.image)
        raise InputError(
            f"{self} is a {type(self.image).__name__}; give a PIL image, a file's name, an address or a numpy array"
        )

    def _read_file(self, file: Path) -> Image.Image:
        places = slices_of(file)
        if len(places) > 1:
            raise InputError(f"{self} holds {len(places)} slices; give them one by one, as images or arrays")
        return read_slice(places[0])

    def _read_picture(self, image: Image.Image) -> Image.Image:
        if image.mode not in EIGHT_BIT_MODES:
            raise InputError(f"{self} has more than 8 bits a channel (mode {image.mode}); make it an 8-bit image")
        try:
            return turn_upright(image).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise InputError(f"{self} cannot be read as an image: {error}") from error

    def _read_array(self, array: np.ndarray) -> Image.Image:
        if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)) or array.ndim < 2 or 0 in array.shape:
            kind = f"{array.dtype} array of shape {array.shape}"
            raise InputError(f"{self} is a {kind}; give uint8 of shape (height, width) or (height, width, 3)")
        return Image.fromarray(array).convert("RGB")


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer:
            data = answer.read(FETCH_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{url} cannot be fetched: {error}") from error
    if len(data) > FETCH_BYTES:
        raise InputError(f"{url} is larger than {FETCH_BYTES // 2**20} MiB; download it and give a smaller image")
    return data
