"""Small data sets in the forms that users have: an image folder, COCO annotations, Parquet and WebDataset shards."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.version import Version
from PIL import Image

from peft_vlsm.segmentation.sources.open import STREAMS_RESUME

WIDTH, HEIGHT = 12, 10
streams = pytest.mark.skipif(
    Version(datasets.__version__) < STREAMS_RESUME, reason=f"--streaming needs datasets {STREAMS_RESUME}"
)
SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]


def picture(shade: int = 90) -> np.ndarray:
    """An image of one shade."""
    return np.full((HEIGHT, WIDTH, 3), shade, np.uint8)


def square() -> np.ndarray:
    """The mask that the polygon `SQUARE` draws."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:8, 2:6] = 255
    return mask


def png(array: np.ndarray) -> bytes:
    """A PNG file's content."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write_imagefolder(folder: Path, rows: int = 3) -> Path:
    """Writes a folder of one split with its metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(rows):
        (folder / f"{index}.png").write_bytes(png(picture(index)))
        (folder / f"{index}_mask.png").write_bytes(png(square()))
        prompt = ["a square", "one square"] if index else "square"
        lines.append({"file_name": f"{index}.png", "mask_file_name": f"{index}_mask.png", "prompt": prompt})
    write_metadata(folder, lines)
    return folder


def write_metadata(folder: Path, lines: list[dict]) -> None:
    """Writes metadata.jsonl."""
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")


def read_metadata(folder: Path) -> list[dict]:
    """Reads metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def coco_content(**changes: object) -> dict:
    """
    Two images and four categories: the first image shows two squares and a crowd of discs, the second one square.
    """
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 10, 110]}
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "segmentation": [[8, 0, 10, 0, 10, 2, 8, 2]], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 2, "segmentation": crowd, "iscrowd": 1},
        {"id": 4, "image_id": 9, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0},
    ]
    images = [{"id": key, "file_name": f"{key}.png", "width": WIDTH, "height": HEIGHT} for key in (7, 9)]
    categories = [{"id": key, "name": name} for key, name in enumerate(("square", "disc", "star", "cross"), 1)]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def write_coco(folder: Path, content: object = None) -> Path:
    """Writes DATA_DIR/annotations/instances_{train,val}2017.json and the images."""
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(content or coco_content()), encoding="utf-8")
    for key in (7, 9):
        (folder / "images" / f"{key}.png").write_bytes(png(picture(key)))
    return folder


def records(first: int, count: int) -> list[dict]:
    """Rows of a table; each image has a shade of its own."""
    mask = {"bytes": png(square()), "path": None}
    return [
        {"image": {"bytes": png(picture(n)), "path": f"{n}.png"}, "mask": mask, "prompt": [f"t{n}", f"u{n}"]}
        for n in range(first, first + count)
    ]


def write_parquet(file: Path, rows: list[dict]) -> Path:
    """Writes one Parquet shard without datasets' own metadata, as pandas would."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    return file


def write_tar(file: Path, rows: list[dict[str, bytes]]) -> Path:
    """Writes one WebDataset shard; the keys are the files' extensions."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for number, row in enumerate(rows):
            for extension, content in row.items():
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file
