"""DICOM and NIfTI files as images: orientation, grey levels, frames, masks back onto the scan, and damaged files."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.volumes.grey_window import to_grey
from peft_vlsm.segmentation.volumes.nifti import write_mask_volume
from peft_vlsm.segmentation.volumes.slices import Slice, read_slice, slices_of

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def _grey(place):
    image = read_slice(place)
    assert image.mode == "RGB"
    return np.asarray(image)[..., 0]


WINDOWS = {
    "window": ([-10, 0, 50, 100, 200], (0, 100), [0, 0, 128, 255, 255]),
    "constant": ([7, 7, 7], None, [0, 0, 0]),
    "not finite": ([np.nan, 0, np.inf, 100], (0, 100), [0, 0, 0, 255]),
    "nothing finite": ([np.nan, np.inf], None, [0, 0]),
    "two values": ([0.0, 1.0], None, [0, 255]),
}


@pytest.mark.parametrize("values, window, levels", WINDOWS.values(), ids=WINDOWS)
def test_grey_levels(values, window, levels):
    grey = to_grey(np.array(values, dtype=np.float32), window)
    assert grey.dtype == np.uint8 and grey.tolist() == levels


def test_outliers_do_not_darken_an_image():
    values = np.append(np.arange(1000.0), 1e6)
    assert to_grey(values)[500] == pytest.approx(128, abs=2)


def _write_scan(file, orientation, shape=(4, 5, 3)):
    """A scan whose voxel values say where in the patient they lie: 100 S + 10 A + R, stored in this orientation."""
    right, front, top = np.meshgrid(*map(np.arange, shape), indexing="ij")
    canonical = (100 * top + 10 * front + right).astype(np.uint8)
    back = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(orientation)
    )
    image = nibabel.Nifti1Image(canonical, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(back)
    nibabel.save(image, file)
    return nibabel.load(file)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PIR", "SAL", "ASR"])
def test_axial_slices_look_the_same_in_every_orientation(tmp_path, orientation):
    file = tmp_path / "scan.nii.gz"
    stored = _write_scan(file, orientation)
    places = slices_of(file)
    assert places == [Slice(file, index) for index in range(3)]
    for place in places:
        grey = _grey(place)
        # Front above, the right side on the left, the lowest slice first.
        assert grey.shape == (5, 4)
        assert grey.tolist() == [[100 * place.index + 10 * a + r for r in (3, 2, 1, 0)] for a in (4, 3, 2, 1, 0)]
    masks = np.stack([_grey(place) for place in places]) % 7 > 3
    write_mask_volume(tmp_path / "mask.nii.gz", masks, file)
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(written.affine, stored.affine) and written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj) % 7 > 3)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 1, 1)], ids=str)
def test_a_file_of_one_slice_is_shown_as_stored(tmp_path, shape):
    file = tmp_path / "echo.nii"
    voxels = np.arange(24, dtype=np.uint8).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, 1, 1, 1])), file)
    (place,) = slices_of(file)
    assert np.array_equal(_grey(place), voxels.reshape(6, 4).T)
    write_mask_volume(tmp_path / "mask.nii.gz", _grey(place)[None] > 9, file)
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), voxels > 9)


def test_one_window_serves_all_slices_and_scaling_counts(tmp_path):
    file = tmp_path / "scan.nii.gz"
    voxels = np.zeros((10, 10, 2), np.int16)
    voxels[..., 1] = 1000
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, file)
    assert [int(_grey(place).mean()) for place in slices_of(file)] == [0, 255]
    masks = np.stack([np.zeros((10, 10), bool), np.eye(10, dtype=bool)])
    write_mask_volume(tmp_path / "mask.nii.gz", masks, file)
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert written.get_data_dtype() == np.uint8 and np.unique(written.get_fdata()).tolist() == [0, 1]
    assert (written.header["cal_min"], written.header["cal_max"]) == (0, 1), "viewers show 1 as white"


@pytest.mark.parametrize("slope, intercept", [(2, 0), (1, -50)])
def test_8_bits_that_are_scaled_are_windowed(tmp_path, slope, intercept):
    values = np.repeat(np.array([0, 40, 80], np.float32), 40).reshape(10, 12, 1)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.uint8)
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, tmp_path / "scan.nii")
    (place,) = slices_of(tmp_path / "scan.nii")
    assert nibabel.load(tmp_path / "scan.nii").get_data_dtype() == np.uint8
    assert np.unique(_grey(place)).tolist() == [0, 128, 255]


def test_a_file_written_anew_is_read_anew(tmp_path):
    file = tmp_path / "scan.nii.gz"
    for orientation, shape in (("RAS", (4, 5, 3)), ("RAS", (3, 3, 2))):
        _write_scan(file, orientation, shape)
        assert _grey(Slice(file, 0)).shape == shape[1::-1]


def _dicom(frames=1, shape=(6, 8), kind=np.uint16, **fields):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = shape
    bits = np.dtype(kind).itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    if frames > 1:
        dataset.NumberOfFrames = frames
    for name, value in fields.items():
        setattr(dataset, name, value)
    size = frames * shape[0] * shape[1] * dataset.SamplesPerPixel
    dataset.PixelData = np.arange(size).astype(kind).tobytes()
    return dataset


def _save(dataset, file):
    dataset.save_as(file, enforce_file_format=True)
    return file


VALUES = np.arange(48.0).reshape(6, 8)
DICOM_CASES = {
    "window": ({"WindowCenter": 20, "WindowWidth": 11}, np.clip((VALUES - 14.5) / 10, 0, 1)),
    "two windows": ({"WindowCenter": [20, 5], "WindowWidth": [11, 3]}, np.clip((VALUES - 14.5) / 10, 0, 1)),
    "no window": ({}, np.clip((VALUES - 0.235) / 46.53, 0, 1)),
    "no width": ({"WindowCenter": 20, "WindowWidth": None}, np.clip((VALUES - 0.235) / 46.53, 0, 1)),
    "rescaled": (
        {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": -960, "WindowWidth": 21},
        np.clip((2 * VALUES - 1000 + 970.5) / 20, 0, 1),
    ),
    "inverted": (
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 20, "WindowWidth": 11},
        1 - np.clip((VALUES - 14.5) / 10, 0, 1),
    ),
}


@pytest.mark.parametrize("fields, levels", DICOM_CASES.values(), ids=DICOM_CASES)
def test_a_dicom_image(tmp_path, fields, levels):
    file = _save(_dicom(**fields), tmp_path / "scan.dcm")
    assert slices_of(file) == [Slice(file)]
    assert np.allclose(_grey(Slice(file)), 255 * levels, atol=1)


def test_a_dicom_file_of_several_frames(tmp_path):
    file = _save(_dicom(frames=3, WindowCenter=72, WindowWidth=145), tmp_path / "SCAN.DCM")
    places = slices_of(file)
    assert places == [Slice(file, index) for index in range(3)]
    means = [_grey(place).mean() for place in places]
    assert means[0] < means[1] - 50 and means[1] < means[2] - 50


def test_a_dicom_file_of_colours(tmp_path):
    fields = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    file = _save(_dicom(kind=np.uint8, **fields), tmp_path / "photo.dcm")
    assert np.array_equal(np.asarray(read_slice(Slice(file))), np.arange(144, dtype=np.uint8).reshape(6, 8, 3))


NAMES = {
    "picture": (Slice(Path("d/a.b.png")), "d/a.b.png", "d/a.b.png", False),
    "dicom": (Slice(Path("d/a.dcm")), "d/a.dcm", "d/a.dcm", False),
    "frame": (Slice(Path("d/a.dcm"), 2), "d/a-002.dcm", "d/a.dcm slice 2", False),
    "volume": (Slice(Path("d/a.NII.gz"), 12), "d/a-012.nii", "d/a.NII.gz slice 12", True),
    "plain volume": (Slice(Path("d/a.nii"), 0), "d/a-000.nii", "d/a.nii slice 0", True),
}


@pytest.mark.parametrize("place, name, text, in_volume", NAMES.values(), ids=NAMES)
def test_names(place, name, text, in_volume):
    assert (place.name, str(place), place.in_volume) == (Path(name), text, in_volume)


def test_a_picture_is_one_image(tmp_path):
    Image.new("L", (4, 3), 9).save(tmp_path / "a.png")
    (place,) = slices_of(tmp_path / "a.png")
    assert _grey(place).tolist() == [[9] * 4] * 3


def _truncated(file):
    _write_scan(file, "RAS", (40, 40, 30))
    file.write_bytes(file.read_bytes()[:600])


def _saved(voxels):
    return lambda file: nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)


def _without_axis(file):
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).header
    header["sform_code"], header["srow_x"] = 2, 0
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), None, header), file)


COLOURS = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_FILES = {
    "missing.nii": (lambda file: None, "missing.nii does not exist"),
    "zero.nii": (lambda file: file.touch(), "zero.nii cannot be read as NIfTI"),
    "text.nii.gz": (lambda file: file.write_text("text"), "text.nii.gz cannot be read as NIfTI"),
    "cut.nii.gz": (_truncated, "cut.nii.gz cannot be read as NIfTI"),
    "cut.nii": (_truncated, "cut.nii cannot be read as NIfTI"),
    "time.nii.gz": (_saved(np.zeros((4, 4, 4, 2), np.int16)), "give one volume of two or three dimensions"),
    "colours.nii.gz": (_saved(COLOURS), "give one volume of two or three dimensions"),
    "complex.nii.gz": (_saved(np.zeros((2, 2, 2), np.complex64)), "holds complex64 of shape"),
    "affine.nii.gz": (_without_axis, "its affine gives no axis"),
    "missing.dcm": (lambda file: None, "missing.dcm does not exist"),
    "zero.dcm": (lambda file: file.touch(), "zero.dcm cannot be read as DICOM"),
    "text.dcm": (lambda file: file.write_text("text" * 99), "text.dcm cannot be read as DICOM"),
    "cut.dcm": (
        lambda file: file.write_bytes(_save(_dicom(), file).read_bytes()[:-50]),
        "cut.dcm cannot be read as DICOM",
    ),
    "report.dcm": (lambda file: _without(file, "Rows"), "report.dcm is a DICOM file without an image"),
    "deep.dcm": (
        lambda file: _save(_dicom(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0), file),
        "deep.dcm has uint16 colours",
    ),
}


def _without(file, name):
    dataset = _dicom()
    del dataset[name]
    _save(dataset, file)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_serve(tmp_path, name):
    write, problem = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=problem):
        for place in slices_of(tmp_path / name):
            read_slice(place)


def test_a_header_that_claims_too_much_is_not_believed(tmp_path):
    file = tmp_path / "bomb.nii"
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    nibabel.save(image, file)
    header = image.header.copy()
    header["dim"][1:4] = 30000
    file.write_bytes(header.binaryblock + file.read_bytes()[348:])
    with pytest.raises(InputError, match="bomb.nii claims .* more than 1073741824"):
        slices_of(file)


@pytest.mark.parametrize("package, name", [("nibabel", "a.nii.gz"), ("pydicom", "a.dcm")])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'{name}: .* need {package}; pip install "peft-vlsm\[medical\]"'):
        slices_of(tmp_path / name)
