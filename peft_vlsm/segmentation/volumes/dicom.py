"""
DICOM files (`.dcm`): each frame as an 8-bit image.

Stored values are rescaled by the file's own slope and intercept or modality table. Then they become grey levels by the
file's first VOI table or window (WindowCenter, WindowWidth); where it has none, by the percentiles of [`to_grey`].
MONOCHROME1 is inverted, so that more is always brighter. Colour images keep their colours. Windows and rescaling that
a multi-frame file gives for single frames are not read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.volumes.grey_window import to_grey

DICOM_SUFFIXES = (".dcm", ".dicom")
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


def count_dicom_frames(file: Path) -> int:
    """
    The number of frames, by the header alone.

    Raises:
        InputError: pydicom is not installed, or the file is no DICOM image.
    """
    dataset = _read(file, header=True)
    with _explained(file):
        frames = int(dataset.get("NumberOfFrames") or 1)
    if not 0 < frames <= file.stat().st_size:
        raise InputError(f"{file} claims {frames} frames, which its {file.stat().st_size} bytes cannot hold")
    return frames


def read_dicom(file: Path, frame: int = 0) -> Image.Image:
    """
    Reads a frame; the last file read is kept, for its other frames.

    Args:
        file (`Path`): a DICOM file.
        frame (`int`, defaults to 0): counted from 0.

    Returns:
        `PIL.Image.Image`: mode RGB.

    Raises:
        InputError: as in [`count_dicom_frames`], and where its pixels cannot be read, for instance since no decoder
            for their compression is installed.
    """
    with _explained(file):
        written = file.stat().st_mtime_ns
    dataset = _read_whole(file, written)
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    with _explained(file, dataset):
        values = pixel_array(dataset, index=frame)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            return Image.fromarray((values >> (8 * (values.dtype.itemsize - 1))).astype(np.uint8))
        if dataset.SamplesPerPixel == 1:
            grey = _grey(dataset, values)
            return Image.fromarray(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey).convert(
                "RGB"
            )
        if values.dtype != np.uint8:
            raise InputError(f"{file} has {values.dtype} colours; save it with 8 bits a channel")
        return Image.fromarray(values).convert("RGB")


@lru_cache(maxsize=1)
def _read_whole(file: Path, written: int) -> Any:
    """A file that was written anew meanwhile is read anew."""
    return _read(file)


def _read(file: Path, header: bool = False) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f'{file}: DICOM files need pydicom; pip install "peft-vlsm[medical]"') from error
    with _explained(file):
        dataset = pydicom.dcmread(file, stop_before_pixels=header)
    needed = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel")
    missing = [name for name in needed if name not in dataset]
    if missing:
        raise InputError(f"{file} is a DICOM file without an image: it has no {missing[0]}")
    return dataset


@contextmanager
def _explained(file: Path, dataset: Any = None) -> Iterator[None]:
    """Every error of pydicom, and of the decoders behind it, as one line."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    except Exception as error:  # A damaged file fails anywhere, and each decoder raises errors of its own.
        problem = str(error) if dataset is None else _pixel_problem(dataset, error)
        raise InputError(f"{file} cannot be read as DICOM: {problem}") from error


def _pixel_problem(dataset: Any, error: Exception) -> str:
    """Says what to install, where that may help to read compressed pixels."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, RLELossless

    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return str(error)
    if not decoder.is_available:
        return f"no decoder of {syntax.name} is installed; {DECODERS}"
    # pydicom itself decodes RLE.
    others = decoder.missing_dependencies and syntax != RLELossless
    return f"{error}; another decoder may do better: {DECODERS}" if others else str(error)


def _grey(dataset: Any, values: np.ndarray) -> np.ndarray:
    """Stored values as grey levels, by the rules of DICOM PS3.3 C.11.1 and C.11.2."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return to_grey(apply_voi(np.rint(values).astype(np.int64), dataset, index=0), (0, 2**bits - 1))
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return to_grey(values)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID" and width > 0:
        # The logistic function of 4 (values - center) / width, in a form that does not overflow.
        return to_grey(np.tanh(2 * (values - center) / width), (-1, 1))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return to_grey(values, (center - width / 2, center + width / 2) if width > 0 else None)


def _first(value: Any) -> float | None:
    """The first of several values that a file may give."""
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, (int, float, str)) else float(value[0])
