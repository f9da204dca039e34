"""
DICOM files (`.dcm`): each frame as an 8-bit image.

Stored values are rescaled by the file's own slope and intercept or modality table, then the file's first window
(WindowCenter, WindowWidth) is stretched over the grey levels; where it has none, the percentiles of [`to_grey`].
MONOCHROME1 is inverted, so that more is always brighter. Colour images keep their colours. Windows and rescaling that
a multi-frame file gives for single frames are not read.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.volumes.grey_window import to_grey

DICOM_SUFFIXES = (".dcm", ".dicom")


def count_dicom_frames(file: Path) -> int:
    """
    The number of frames, by the header alone.

    Raises:
        InputError: pydicom is not installed, or the file is no DICOM image.
    """
    return int(_read(file, header=True).get("NumberOfFrames") or 1)


def read_dicom(file: Path, frame: int = 0) -> Image.Image:
    """
    Reads a frame.

    Args:
        file (`Path`): a DICOM file.
        frame (`int`, defaults to 0): counted from 0.

    Returns:
        `PIL.Image.Image`: mode RGB.

    Raises:
        InputError: as in [`count_dicom_frames`], and where its pixels cannot be read.
    """
    dataset = _read(file)
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    try:
        values = pixel_array(dataset, index=frame)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            return Image.fromarray((values >> (8 * (values.dtype.itemsize - 1))).astype(np.uint8))
        if dataset.SamplesPerPixel == 1:
            values = apply_modality_lut(values, dataset)
    except Exception as error:  # Decoders of many libraries stand behind pydicom; each raises errors of its own.
        raise InputError(f"{file} cannot be read as DICOM: {error}") from error
    if values.ndim == 3:
        if values.dtype != np.uint8:
            raise InputError(f"{file} has {values.dtype} colours; save it with 8 bits a channel")
        return Image.fromarray(values).convert("RGB")
    grey = to_grey(values, _window(dataset))
    return Image.fromarray(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey).convert("RGB")


def _read(file: Path, header: bool = False) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f'{file}: DICOM files need pydicom; pip install "peft-vlsm[medical]"') from error
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=header)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    except Exception as error:  # A damaged file fails anywhere in pydicom's parser.
        raise InputError(f"{file} cannot be read as DICOM: {error}") from error
    needed = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel")
    missing = [name for name in needed if name not in dataset]
    if missing:
        raise InputError(f"{file} is a DICOM file without an image: it has no {missing[0]}")
    return dataset


def _window(dataset: Any) -> tuple[float, float] | None:
    """The values that become black and white, as DICOM PS3.3 C.11.2.1.2 defines them."""
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width <= 1:
        return None
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _first(value: Any) -> float | None:
    """The first of several values that a file may give."""
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, (int, float, str)) else float(value[0])
