"""DICOM files: compressed pixels, what is said where a decoder is missing, and grey levels as pydicom has them."""

import os
from pathlib import Path

import numpy as np
import pytest
from builders import failure_of, load_example
from PIL import Image

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.volumes.dicom import count_dicom_frames, read_dicom

pydicom = pytest.importorskip("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.pixels.decoders.base import get_decoder  # noqa: E402
from pydicom.pixels.encoders.base import get_encoder  # noqa: E402
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


def make(pixels, interpretation="MONOCHROME2", **fields):
    """A file of these pixels, of shape (frames, height, width) or (frames, height, width, 3)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
    if pixels.ndim == 4:
        dataset.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PhotometricInterpretation = interpretation
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    return dataset


def save(dataset, file):
    dataset.save_as(file, enforce_file_format=True)
    return file


def noise(kind, shape, low=0, high=255):
    return np.random.default_rng(0).integers(low, high, shape, dtype=kind, endpoint=True)


IMAGES = {
    "8 bits": (noise(np.uint8, (1, 72, 66)), "MONOCHROME2", {}),
    "16 bits with a sign": (noise(np.int16, (1, 72, 66), -1000, 2000), "MONOCHROME2", {"WindowCenter": 40}),
    "inverted": (noise(np.uint16, (1, 72, 66), 0, 4000), "MONOCHROME1", {"WindowCenter": 2000}),
    "frames": (noise(np.uint8, (3, 72, 66)), "MONOCHROME2", {}),
    "colours": (noise(np.uint8, (1, 72, 66, 3)), "RGB", {}),
}


@pytest.mark.parametrize("pixels, interpretation, fields", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["RLE", "JPEG 2000"])
def test_compressed_pixels_are_read_as_plain_ones(tmp_path, syntax, pixels, interpretation, fields):
    if not get_encoder(syntax).is_available:
        pytest.skip(f"{DECODERS}: pydicom cannot write {syntax.name}")
    fields = {"WindowWidth": 2000, **fields} if fields else {}
    plain = save(make(pixels, interpretation, **fields), tmp_path / "plain.dcm")
    dataset = make(pixels, interpretation, **fields)
    dataset.compress(syntax, generate_instance_uid=False)
    packed = save(dataset, tmp_path / "packed.dcm")
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == syntax
    assert count_dicom_frames(packed) == len(pixels)
    for frame in range(len(pixels)):
        grey = np.asarray(read_dicom(packed, frame))
        assert len(np.unique(grey)) > 20
        assert np.array_equal(grey, np.asarray(read_dicom(plain, frame)))
        if pixels.ndim == 4:
            assert np.array_equal(grey, pixels[frame])


def test_a_file_is_read_once_for_all_its_frames_until_it_is_written_anew(tmp_path, monkeypatch):
    pixels = noise(np.uint8, (3, 8, 8))
    file = save(make(pixels), tmp_path / "frames.dcm")
    reads, read = [], pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **settings: reads.append(args) or read(*args, **settings))
    before = [np.asarray(read_dicom(file, frame)) for frame in range(3)]
    assert len(reads) == 1 and not np.array_equal(before[0], before[1])
    save(make(pixels[::-1]), file)
    os.utime(file, ns=(1, 1))
    assert np.array_equal(np.asarray(read_dicom(file, 2)), before[0])


def bundled(name):
    """A file that pydicom's wheel brings along."""
    return Path(str(get_testdata_file(name, download=False)))


PAIRS = {
    "RLE": ("MR_small_RLE.dcm", "MR_small.dcm"),
    "JPEG 2000": ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    "JPEG-LS": ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    "JPEG lossless": ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
}


@pytest.mark.parametrize("packed, plain", PAIRS.values(), ids=PAIRS)
def test_files_of_other_programs(packed, plain):
    syntax = pydicom.dcmread(bundled(packed), stop_before_pixels=True).file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        pytest.skip(f"{DECODERS}: no decoder of {syntax.name}")
    assert np.array_equal(np.asarray(read_dicom(bundled(packed))), np.asarray(read_dicom(bundled(plain))))


@pytest.mark.parametrize(
    "syntax, name, told",
    [
        (JPEGLosslessSV1, "SC_rgb_jpeg_gdcm.dcm", "JPEG Lossless, Non-Hierarchical, First-Order Prediction"),
        (JPEGLSLossless, "MR_small_jpeg_ls_lossless.dcm", "JPEG-LS Lossless Image Compression"),
    ],
    ids=["JPEG lossless", "JPEG-LS"],
)
def test_no_decoder(capsys, tmp_path, base, syntax, name, told):
    if get_decoder(syntax).is_available:
        pytest.skip(f"a decoder of {syntax.name} is installed")
    flags = ("--adapter", base, "--image", bundled(name), "--prompt", "disc", "--output", tmp_path / "out")
    error = failure_of(capsys, load_example("predict"), *flags)
    assert f"{name} cannot be read as DICOM: no decoder of {told}" in error and DECODERS in error
    assert not list(tmp_path.glob("out/*"))


def test_an_installed_decoder_that_fails(tmp_path):
    if not get_decoder(JPEG2000Lossless).missing_dependencies:
        pytest.skip("every decoder is installed")
    dataset = pydicom.dcmread(bundled("MR_small_jp2klossless.dcm"))
    dataset.PixelData = dataset.PixelData[:16] + bytes(len(dataset.PixelData) - 24) + dataset.PixelData[-8:]
    with pytest.raises(InputError, match="(?s)bad.dcm cannot be read as DICOM: .*another decoder may do better: pip"):
        read_dicom(save(dataset, tmp_path / "bad.dcm"))


def table(first, values, bits):
    item = Dataset()
    item.add_new((0x0028, 0x3002), "SS", [len(values), first, bits])
    item.add_new((0x0028, 0x3006), "US", values)
    return item


def modality(first, values):
    item = table(first, values, 16)
    item.ModalityLUTType = "US"
    return {"ModalityLUTSequence": [item]}


CURVE = [int(255 * (level / 255) ** 0.5) for level in range(256)]
WINDOWED = {
    "window": {"WindowCenter": 40, "WindowWidth": 400},
    "several windows": {"WindowCenter": [600, 40], "WindowWidth": [1500, 400], "RescaleIntercept": -24},
    "fractions": {"WindowCenter": "40.25", "WindowWidth": "81.5"},
    "rescaled": {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": "0.5", "RescaleIntercept": "-100"},
    "falling": {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": "-1", "RescaleIntercept": "0"},
    "exact": {"WindowCenter": 40, "WindowWidth": 9, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"},
    "VOI table": {"VOILUTSequence": [table(0, CURVE, 8)]},
    "VOI table before a window": {"VOILUTSequence": [table(-50, CURVE, 8)], "WindowCenter": 40, "WindowWidth": 400},
    "VOI table, rescaled": {"VOILUTSequence": [table(-10, CURVE, 8)], "RescaleSlope": 2, "RescaleIntercept": -24},
    "modality table": {
        **modality(-1000, [level * 20 for level in range(3001)]),
        "WindowCenter": 9e3,
        "WindowWidth": 5e4,
    },
}


@pytest.mark.parametrize("interpretation", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("fields", WINDOWED.values(), ids=WINDOWED)
def test_grey_levels_are_those_of_pydicom(tmp_path, fields, interpretation):
    pixels = noise(np.int16, (1, 40, 50), -1000, 2000)
    if "VOILUTSequence" in fields:
        pixels = noise(np.int16, (1, 40, 50), -100, 300)
    file = save(make(pixels, interpretation, RescaleType="US", **fields), tmp_path / "scan.dcm")
    grey = np.asarray(read_dicom(file))[..., 0].astype(float)
    dataset = pydicom.dcmread(file)
    values = apply_modality_lut(pixels[0], dataset)
    if "VOILUTSequence" in fields:
        values = values.astype(int)
    values = apply_voi_lut(values, dataset).astype(float)
    darkest, brightest = 0.0, 255.0
    if "VOILUTSequence" not in fields:
        with np.errstate(over="ignore"):
            darkest, brightest = apply_voi_lut(np.array([-1e9, 1e9]), dataset)
    expected = 255 * (values - darkest) / (brightest - darkest)
    if interpretation == "MONOCHROME1":
        expected = 255 - expected
    assert len(np.unique(grey)) > 5 and np.abs(grey - expected).max() <= 1


@pytest.mark.parametrize("interpretation", ["YBR_FULL", "RGB"])
def test_colours(tmp_path, interpretation):
    photo = Image.fromarray(noise(np.uint8, (12, 10, 3)))
    stored = photo.convert("YCbCr") if interpretation == "YBR_FULL" else photo
    file = save(make(np.asarray(stored)[None], interpretation), tmp_path / "photo.dcm")
    expected = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(np.asarray(read_dicom(file)).astype(int) - expected).max() <= 1


def test_colours_with_fewer_chroma_values():
    half = np.asarray(read_dicom(bundled("SC_ybr_full_422_uncompressed.dcm"))).astype(int)
    assert np.abs(half - np.asarray(read_dicom(bundled("SC_rgb_rle.dcm")))).max() <= 8


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    "name, value, problem",
    [
        ("NumberOfFrames", "1A", "cannot be read as DICOM"),
        ("NumberOfFrames", -2, "claims -2 frames"),
        ("NumberOfFrames", 10**9, "claims 1000000000 frames, which its .* bytes cannot hold"),
        ("WindowCenter", "low", "cannot be read as DICOM"),
        ("RescaleSlope", "steep", "cannot be read as DICOM"),
    ],
)
def test_headers_that_cannot_serve(tmp_path, monkeypatch, name, value, problem):
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    dataset = make(noise(np.int16, (1, 4, 5)), WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=0)
    tag = dataset[name].tag
    dataset[tag] = pydicom.DataElement(tag, "LO", str(value))
    file = tmp_path / "bad.dcm"
    save(dataset, file)
    kind = {"NumberOfFrames": b"IS"}.get(name, b"DS")
    place = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    file.write_bytes(file.read_bytes().replace(place + b"LO", place + kind))
    with pytest.raises(InputError, match=f"bad.dcm {problem}"):
        count_dicom_frames(file)
        read_dicom(file)
