"""Data in every form that the scripts take, and the ways in which images, data and saved weights are spoilt."""

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import read_rows, write_dataset, write_rows
from PIL import Image
from safetensors.torch import load_file, save_file
from source_data import (
    coco_content,
    picture,
    png,
    read_metadata,
    records,
    square,
    write_coco,
    write_imagefolder,
    write_metadata,
    write_parquet,
    write_tar,
)

SIZES = {"medvlsm": (40, 36), "coco": (12, 10), "imagefolder": (12, 10), "parquet": (12, 10), "webdataset": (12, 10)}
ROTATED = 6  # EXIF: turned by a quarter.


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file's content."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(size: tuple[int, int]) -> Image.Image:
    """An image that does not compress to nothing."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def marked(size: tuple[int, int], level: int = 255) -> Image.Image:
    """A mask whose middle has this level."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[3:8, 2:9] = level
    return Image.fromarray(mask)


def bomb(size: tuple[int, int]) -> bytes:
    """A PNG file of a few bytes that says it has 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


def _frames(size: tuple[int, int], kind: str) -> bytes:
    frames = [photograph(size), photograph(size).rotate(180)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _palette(size: tuple[int, int]) -> Image.Image:
    return photograph(size).quantize(16)


IMAGES: dict[str, Callable[[tuple[int, int]], bytes]] = {
    "zero bytes": lambda size: b"",
    "text": lambda size: b"no picture at all",
    "cut off": lambda size: encoded(photograph(size))[:-60],
    "bomb": bomb,
    "16 bits": lambda size: encoded(Image.fromarray(np.full((size[1], size[0]), 999, np.uint16))),
    "floats": lambda size: encoded(photograph(size).convert("F"), "TIFF"),
    "32 bits": lambda size: encoded(photograph(size).convert("I"), "TIFF"),
    "animated GIF": lambda size: _frames(size, "GIF"),
    "animated PNG": lambda size: _frames(size, "PNG"),
    "two pages": lambda size: _frames(size, "TIFF"),
    "palette": lambda size: encoded(_palette(size)),
    "clear palette": lambda size: encoded(_palette(size), transparency=0),
    "CMYK": lambda size: encoded(photograph(size).convert("CMYK"), "JPEG"),
    "grey and alpha": lambda size: encoded(photograph(size).convert("LA")),
    "rotated": lambda size: _turned(photograph(size)),
    "mask": lambda size: encoded(marked(size)),
    "mask, 0 and 1": lambda size: encoded(marked(size, 1)),
    "mask, classes": lambda size: encoded(marked(size, 150)),
    "mask, probabilities": lambda size: encoded(photograph(size).convert("L")),
    "mask, a colour": lambda size: encoded(Image.merge("RGB", [marked(size), marked(size, 0), marked(size, 0)])),
    "mask, clear": lambda size: encoded(Image.merge("LA", [marked(size), marked(size, 99)])),
    "mask, another size": lambda size: encoded(marked((size[0] + 1, size[1]))),
    "mask, lying": lambda size: encoded(marked((size[1], size[0]))),
    "mask, 1 bit": lambda size: encoded(marked(size).convert("1")),
    "mask, palette": lambda size: encoded(marked(size).convert("P")),
    "mask, JPEG": lambda size: encoded(marked(size), "JPEG"),
    "mask, empty": lambda size: encoded(marked(size, 0)),
    "mask, rotated": lambda size: _turned(marked(size)),
}


def write_source(kind: str, folder: Path, rows: dict[int, dict] | None = None) -> Path:
    """
    Writes a data set of two training rows or more.

    Args:
        kind (`str`): a key of `SIZES`.
        folder (`Path`): the data folder.
        rows (`dict[int, dict]`): by the number of a training row, what it has otherwise: `image` and `mask`, an
            image file's content, a name, or None for none; `prompt`, a value.
    """
    _WRITERS[kind](folder, rows or {})
    return folder


def _put(file: Path, content: bytes | None) -> None:
    file.unlink() if content is None else file.write_bytes(content)


def _medvlsm(folder: Path, changes: dict[int, dict]) -> None:
    write_dataset(folder, {"train": 4, "val": 2, "test": 1})
    rows = read_rows(folder, "train")
    for number, change in changes.items():
        for role, key in (("image", "img_name"), ("mask", "mask_name")):
            if isinstance(change.get(role, ""), str):
                rows[number][key] = change.get(role, rows[number][key])
            else:
                _put(folder / f"{role}s" / rows[number][key], change[role])
        rows[number]["prompts"]["p1"] = change.get("prompt", "disc")
    write_rows(folder, "train", rows)


def _coco(folder: Path, changes: dict[int, dict]) -> None:
    content = coco_content()
    write_coco(folder, content)
    for number, change in changes.items():
        if isinstance(change.get("image", ""), str):
            content["images"][number]["file_name"] = change.get("image", content["images"][number]["file_name"])
        else:
            _put(folder / "images" / content["images"][number]["file_name"], change["image"])
        content["categories"][number]["name"] = change.get("prompt", content["categories"][number]["name"])
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")


def _imagefolder(folder: Path, changes: dict[int, dict]) -> None:
    write_imagefolder(folder / "val", 2)
    train = write_imagefolder(folder / "train", 4)
    lines = read_metadata(train)
    for number, change in changes.items():
        for role, key in (("image", "file_name"), ("mask", "mask_file_name")):
            if isinstance(change.get(role, ""), str):
                lines[number][key] = change.get(role, lines[number][key])
            else:
                _put(train / lines[number][key], change[role])
        lines[number]["prompt"] = change.get("prompt", "square")
    write_metadata(train, lines)


def _parquet(folder: Path, changes: dict[int, dict]) -> None:
    rows = records(0, 4)
    for number, change in changes.items():
        for role in {"image", "mask"} & change.keys():
            value = change[role]
            is_name = isinstance(value, str)
            rows[number][role] = {"bytes": None if is_name else value, "path": value if is_name else None}
        rows[number]["prompt"] = change.get("prompt", rows[number]["prompt"])
    if any("prompt" in change and not isinstance(change["prompt"], list) for change in changes.values()):
        prompt = next(change["prompt"] for change in changes.values())
        rows = [row | {"prompt": prompt} for row in rows]
    write_parquet(folder / "train-0.parquet", rows)
    write_parquet(folder / "validation-0.parquet", records(9, 2))


def _webdataset(folder: Path, changes: dict[int, dict]) -> None:
    keys = {"image": "jpg", "mask": "mask.png", "prompt": "txt"}
    rows = [{"jpg": png(picture(number)), "mask.png": png(square()), "txt": b"square"} for number in range(4)]
    for number, change in changes.items():
        new = {keys[role]: value.encode() if isinstance(value, str) else value for role, value in change.items()}
        rows[number] = {key: value for key, value in (rows[number] | new).items() if value is not None}
    write_tar(folder / "train" / "0.tar", rows)
    write_tar(folder / "val" / "0.tar", rows[2:])


_WRITERS = {
    "medvlsm": _medvlsm,
    "coco": _coco,
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


class Evil:
    """Its unpickling makes a folder."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def evil_pickle(marker: Path) -> bytes:
    """A pickle that makes the folder `marker` when it is loaded."""
    # torch warns of later protocols than its own.
    return pickle.dumps(Evil(marker), protocol=2)


def torch_file(content: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def edit_json(file: Path, **changes: object) -> None:
    """Changes the fields of a JSON object."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of a safetensors file."""
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def poison(part: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    """Puts a number into the first tensor with `part` in its name."""

    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights[next(name for name in sorted(weights) if part in name)].view(-1)[0] = value

    return edit


def sign(checkpoint: Path) -> None:
    """Makes a checkpoint's list of files fit what was done to them, as one who wishes harm would."""
    listed = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in checkpoint.iterdir()
        if file.name != "files.json"
    }
    (checkpoint / "files.json").write_text(json.dumps(listed))


def write_hub_cache(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """Writes what the Hub's client has of a repository, for use without a network."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name, content in {
        "refs/main": b"0" * 40,
        **{f"snapshots/{'0' * 40}/{k}": v for k, v in files.items()},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: writing fails as on a full disk, whichever library does it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def full_disk(owner: object, name: str, part: str) -> Iterator[None]:
    """A function of files fails with errno 28 where `part` is in the path that it is given."""
    original = getattr(owner, name)

    def failing(path: object, *args: object, **options: object) -> object:
        if part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing)
        yield
