"""
COCO instance annotations: a category's name is the phrase, and its instances in an image are joined to one mask.

A crowd region (`iscrowd`) shows its category too, and is joined with the instances. Polygons and both forms of RLE
are read; a bounding box alone is no mask. Files are looked for below the image folder alone: in it, in its folder of
the annotations' name (`instances_train2017.json` with `train2017/`), and beside the annotations, where they lie in it.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from peft_vlsm.segmentation.data.images import open_image, upright_size
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.files import find_below, read_json
from peft_vlsm.segmentation.sources.rle import read_rle
from peft_vlsm.segmentation.sources.rows import is_prompt, read_each, warn_of_repeats


@dataclass(frozen=True)
class CocoRow:
    """
    One image and one category; a [`Row`].

    Args:
        index (`int`): the row's place: images in the file's order, of each its categories by their ids, then the
            phrases that it lacks.
        image (`Path`): the image file.
        prompts (`dict[str, list[str]]`): `p1`, the category's name.
        size (`tuple[int, int]`): width and height in pixels.
        regions (`tuple`): of all instances, run-length codes of [`read_rle`] and polygons, each a list of x and y in
            turn; none where the image lacks the category.
    """

    index: int
    image: Path
    prompts: dict[str, list[str]]
    size: tuple[int, int]
    regions: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The image's path and the phrase."""
        return f"{self.image} ({self.prompts['p1'][0]})"

    def check(self) -> None:
        """Raises [`InputError`] where the image is no image, or not of the size that the annotations give."""
        self._check_size(upright_size(self.image))

    def open(self) -> tuple[Image.Image, np.ndarray]:
        """Reads the image, upright in mode RGB, and draws the mask, `(height, width)` of type `bool`."""
        image = open_image(self.image)
        self._check_size(image.size)
        width, height = self.size
        if not self.regions:
            return image, np.zeros((height, width), dtype=bool)
        coco = _pycocotools()
        codes: list[Any] = []
        for region in self.regions:
            is_compressed = isinstance(region, dict) and isinstance(region["counts"], bytes)
            codes.append(region if is_compressed else _encode(coco, region, height, width))
        with warnings.catch_warnings():
            # pycocotools' array has no copy keyword yet, of which numpy 2 warns.
            warnings.simplefilter("ignore", DeprecationWarning)
            return image, coco.decode(coco.merge(codes)).astype(bool)

    def _check_size(self, size: tuple[int, int]) -> None:
        if size != self.size:
            given, found = (f"{width}x{height}" for width, height in (self.size, size))
            raise InputError(f"{self.image} is {found}, its annotations say {given}; annotate this very file")


def read_coco(file: Path, image_root: Path, negatives: int = 0, seed: int = 0) -> list[CocoRow]:
    """
    Reads one split's COCO instance JSON. Rows that repeat another one are kept, and counted in a warning.

    Args:
        file (`Path`): the JSON file with `images`, `annotations` and `categories`.
        image_root (`Path`): the folder below which `file_name` is found.
        negatives (`int`): so many phrases of the file that an image lacks become rows with empty masks, for every
            image; fewer where it lacks fewer. An image without any instance has these rows alone.
        seed (`int`): which phrases, along with the image's id.

    Returns:
        `list[CocoRow]`: at least one.

    Raises:
        InputError: the file, an image or an annotation cannot be used. Names the first, and counts the others.
    """
    lists = _read_lists(file)
    categories = _read_unique(file, "category", lists["categories"], _read_category)
    # Roboflow lists a project's name as a category too: categories of one name are one phrase.
    ids = {name: category_id for category_id, name in reversed(categories.items())}
    names = {category_id: name for category_id, name in categories.items() if ids[name] == category_id}
    if not image_root.is_dir():
        raise InputError(f"{image_root} is not a folder: --image_root names the images of {file}")
    folders = _image_folders(file, image_root)
    images = _read_unique(file, "image", lists["images"], lambda entry: _read_image(folders, entry))
    regions: dict[tuple[int, int], list[Any]] = defaultdict(list)
    read = read_each(
        file, "annotation", _by_id(lists["annotations"]), lambda entry: _read_annotation(entry, images, categories)
    )
    for image_id, category_id, region in read:
        regions[image_id, ids[categories[category_id]]] += region
    rows: list[CocoRow] = []
    for image_id, (path, size) in images.items():
        present = sorted(category for category in names if (image_id, category) in regions)
        for category in [*present, *_draw_absent(names, present, negatives, (seed, image_id))]:
            found = tuple(regions.get((image_id, category), ()))
            rows.append(CocoRow(len(rows), path, {"p1": [names[category]]}, size, found))
    if not rows:
        raise InputError(f"{file} gives no rows: no image has an annotation, and --negatives is 0")
    warn_of_repeats(file, ((row.image, row.prompts["p1"][0], repr(row.regions)) for row in rows))
    return rows


FILE_PREFIX = "instances_"
_KEYS = ("images", "annotations", "categories")


def _read_lists(file: Path) -> dict[str, list[dict]]:
    content = read_json(file, "COCO annotations are one JSON file for each split")
    for key in _KEYS:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{file} has no list of objects {key}; COCO instance annotations have {', '.join(_KEYS)}")
    return {key: content[key] for key in _KEYS}


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError('COCO masks need pycocotools: pip install "peft-vlsm[train]"') from error
    return mask


def _encode(coco: ModuleType, region: Any, height: int, width: int) -> Any:
    if isinstance(region, dict):
        return coco.frPyObjects(region, height, width)
    return coco.frPyObjects([region], height, width)[0]


def _by_id(entries: list[dict]) -> Iterable[tuple[Any, dict]]:
    return ((entry.get("id", f"without an id at place {place}"), entry) for place, entry in enumerate(entries))


def _read_unique(file: Path, unit: str, entries: list[dict], read) -> dict[int, Any]:
    by_id: dict[int, Any] = {}

    def read_entry(entry: dict) -> None:
        key = _integer(entry, "id", 0)
        if key in by_id:
            raise InputError("has the id of another; ids are unique")
        by_id[key] = read(entry)

    read_each(file, unit, _by_id(entries), read_entry)
    return by_id


def _integer(entry: dict, field: str, least: int) -> int:
    value = entry.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{field} must be a whole number of at least {least}, it is {value!r}")
    return value


def _read_category(entry: dict) -> str:
    name = entry.get("name")
    if not is_prompt(name):
        raise InputError(f"name must be a text that is not empty, since it is the phrase; it is {name!r}")
    return str(name)


def _image_folders(file: Path, root: Path) -> list[Path]:
    beside = [file.parent] if file.parent.resolve().is_relative_to(root.resolve()) else []
    return list(dict.fromkeys([root, root / file.stem.removeprefix(FILE_PREFIX), *beside]))


def _read_image(folders: list[Path], entry: dict) -> tuple[Path, tuple[int, int]]:
    size = (_integer(entry, "width", 1), _integer(entry, "height", 1))
    return find_below(folders[0], folders, "file_name", entry.get("file_name")), size


def _read_annotation(entry: dict, images: dict[int, Any], names: dict[int, str]) -> tuple[int, int, list[Any]]:
    image_id, category_id = _integer(entry, "image_id", 0), _integer(entry, "category_id", 0)
    for field, key, known in (("image_id", image_id, images), ("category_id", category_id, names)):
        if key not in known:
            raise InputError(f"{field} {key} is not in the file")
    width, height = images[image_id][1]
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return image_id, category_id, [read_rle(segmentation, height, width)]
    if not isinstance(segmentation, list) or not segmentation:
        raise InputError("has no segmentation (polygons or RLE); a bounding box alone is no mask")
    for polygon in segmentation:
        _check_polygon(polygon, width, height)
    return image_id, category_id, segmentation


def _check_polygon(polygon: Any, width: int, height: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise InputError("segmentation must hold polygons, each a list of at least three x, y in turn")
    # Far outside, pycocotools would draw for hours.
    for place, value in enumerate(polygon):
        side = height if place % 2 else width
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not -side <= value <= 2 * side:
            raise InputError(f"segmentation has the coordinate {value!r}, which is not in the {width}x{height} image")


def _draw_absent(names: dict[int, str], present: list[int], count: int, seeds: tuple[int, int]) -> list[int]:
    absent = [category for category in sorted(names) if category not in present]
    chosen = np.random.default_rng(seeds).permutation(len(absent))[:count]
    return [absent[place] for place in sorted(chosen)]
