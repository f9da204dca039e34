"""
NIfTI volumes (`.nii`, `.nii.gz`): axial slices as images, and masks of the slices as a volume that lies over the scan.

A slice is shown as radiologists see it, whatever the order of the file's axes: the patient's front above and the
right side on the left. The first slice is the lowest. A file of one slice is shown as stored, its first axis to the
right and its second one downwards. Values are stretched to grey levels with one window for the whole volume
([`to_grey`]); 8-bit files stay as they are.
"""

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.volumes.grey_window import to_grey

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MAXIMUM_VOXELS = 2**30
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, zlib.error)


def count_nifti_slices(file: Path) -> int:
    """
    The number of axial slices, by the header alone.

    Raises:
        InputError: nibabel is not installed, or the file is no NIfTI volume of numbers in two or three dimensions.
    """
    image = _open(file)
    shape = _shape(image)
    return shape[_axes(file, image).index(2)] if len(shape) == 3 else 1


def read_nifti(file: Path) -> np.ndarray:
    """
    Reads a volume's slices; the last file read is kept.

    Returns:
        `np.ndarray` of shape `(slices, height, width)` and type `uint8`, as shown.

    Raises:
        InputError: as in [`count_nifti_slices`], and where the file is damaged.
    """
    try:
        written = file.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return _read(file, written)


@lru_cache(maxsize=1)
def _read(file: Path, written: int) -> np.ndarray:
    """A file that was written anew meanwhile is read anew."""
    image = _open(file)
    try:
        plain = image.get_data_dtype() == np.uint8 and image.dataobj.slope == 1 and image.dataobj.inter == 0
        values = np.asarray(image.dataobj, dtype=np.uint8 if plain else np.float32).reshape(_shape(image))
    except _UNREADABLE as error:
        raise InputError(f"{file} cannot be read as NIfTI: {error}") from error
    grey = values if plain else to_grey(values)
    return np.ascontiguousarray(_as_shown(grey, _orientation(file, image)))


def write_mask_volume(file: Path, masks: np.ndarray, like: Path) -> None:
    """
    Writes the masks of a volume's slices as a volume.

    Args:
        file (`Path`): the `.nii.gz` file to write.
        masks (`np.ndarray` of shape `(slices, height, width)`): boolean, in the order of [`read_nifti`].
        like (`Path`): the NIfTI file of the slices, whose shape and affine the new one has.
    """
    import nibabel

    image = _open(like)
    voxels = _as_stored(masks.astype(np.uint8), _orientation(like, image)).reshape(image.shape)
    # The scan's header carries both of its affines and their codes.
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 1
    header.set_slope_inter(1, 0)
    nibabel.save(type(image)(voxels, image.affine, header), file)


def _open(file: Path) -> Any:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise InputError(f'{file}: NIfTI files need nibabel; pip install "peft-vlsm[medical]"') from error
    try:
        image: Any = nibabel.load(file)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    except (*_UNREADABLE, ImageFileError, HeaderDataError) as error:
        raise InputError(f"{file} cannot be read as NIfTI: {error}") from error
    shape = _shape(image)
    if len(shape) not in (2, 3) or 0 in shape or image.get_data_dtype().kind not in "iuf":
        kind = image.get_data_dtype()
        raise InputError(f"{file} holds {kind} of shape {shape}; give one volume of two or three dimensions")
    if np.prod(shape, dtype=np.int64) > MAXIMUM_VOXELS:
        raise InputError(f"{file} claims {shape} voxels, more than {MAXIMUM_VOXELS}; cut it into smaller volumes")
    return image


def _shape(image: Any) -> tuple[int, ...]:
    shape = list(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _orientation(file: Path, image: Any) -> np.ndarray | None:
    """Which patient axis each file axis runs along, and which way; None where there is one slice."""
    import nibabel

    if len(_shape(image)) == 2:
        return None
    axes = image.affine[:3, :3]
    if not np.isfinite(axes).all() or np.linalg.matrix_rank(axes) < 3:
        raise InputError(f"{file}: its affine gives no axis for each dimension; mend its header")
    return nibabel.orientations.io_orientation(image.affine)


def _axes(file: Path, image: Any) -> list[int]:
    orientation = _orientation(file, image)
    assert orientation is not None
    return [int(axis) for axis in orientation[:, 0]]


def _as_shown(voxels: np.ndarray, orientation: np.ndarray | None) -> np.ndarray:
    import nibabel

    if orientation is None:
        return voxels.T[None]
    canonical = nibabel.orientations.apply_orientation(voxels, orientation)
    return canonical[::-1, ::-1].transpose(2, 1, 0)


def _as_stored(slices: np.ndarray, orientation: np.ndarray | None) -> np.ndarray:
    import nibabel

    if orientation is None:
        return slices[0].T
    canonical = slices.transpose(2, 1, 0)[::-1, ::-1]
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), orientation)
    return nibabel.orientations.apply_orientation(canonical, back)
