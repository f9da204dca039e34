"""The images in a file: one in a picture, as many as there are slices or frames in a NIfTI or DICOM file."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from peft_vlsm.segmentation.data.images import open_image
from peft_vlsm.segmentation.volumes.dicom import DICOM_SUFFIXES, count_dicom_frames, read_dicom
from peft_vlsm.segmentation.volumes.nifti import NIFTI_SUFFIXES, count_nifti_slices, read_nifti

SLICED_SUFFIXES = (*DICOM_SUFFIXES, *NIFTI_SUFFIXES)


@dataclass(frozen=True)
class Slice:
    """
    An image of a file.

    Args:
        file (`Path`): a picture, a DICOM file or a NIfTI volume.
        index (`int`, *optional*): which of the file's slices or frames, counted from 0. None where it is the only one.
    """

    file: Path
    index: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.index is None else f"{self.file} slice {self.index}"

    @property
    def name(self) -> Path:
        """A file name for this slice alone: `scan.nii.gz` gives `scan-007.nii`."""
        suffix = suffix_of(self.file)
        if not suffix:
            return self.file
        number = "" if self.index is None else f"-{self.index:03}"
        return self.file.with_name(self.file.name[: -len(suffix)] + number + suffix.removesuffix(".gz"))

    @property
    def in_volume(self) -> bool:
        """Whether the file is a NIfTI volume, for which masks are written as a volume, too."""
        return suffix_of(self.file) in NIFTI_SUFFIXES


def suffix_of(file: Path) -> str:
    """The suffix of a DICOM or NIfTI file, in lower case; empty for every other file."""
    return next((suffix for suffix in reversed(SLICED_SUFFIXES) if file.name.lower().endswith(suffix)), "")


def slices_of(file: Path) -> list[Slice]:
    """
    The images of a file, in order.

    Args:
        file (`Path`): its suffix says what it is.

    Returns:
        `list[Slice]`: for a picture and for a DICOM file of one frame a single one without an index; else as many as
        there are frames, or axial slices from the lowest upwards.

    Raises:
        InputError: a DICOM or NIfTI file cannot be read, or its package is not installed. Pictures are not opened.
    """
    suffix = suffix_of(file)
    if suffix in NIFTI_SUFFIXES:
        return [Slice(file, index) for index in range(count_nifti_slices(file))]
    frames = count_dicom_frames(file) if suffix in DICOM_SUFFIXES else 1
    return [Slice(file)] if frames == 1 else [Slice(file, index) for index in range(frames)]


def read_slice(place: Slice) -> Image.Image:
    """
    Reads an image of a file.

    Returns:
        `PIL.Image.Image`: mode RGB; of a picture upright.

    Raises:
        InputError: it cannot be read.
    """
    suffix = suffix_of(place.file)
    if suffix in NIFTI_SUFFIXES:
        return Image.fromarray(read_nifti(place.file)[place.index or 0]).convert("RGB")
    if suffix in DICOM_SUFFIXES:
        return read_dicom(place.file, place.index or 0)
    return open_image(place.file)
