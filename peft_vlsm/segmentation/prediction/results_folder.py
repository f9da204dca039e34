"""
Images in, results out: which files of a folder are images, and the folder of masks that prediction leaves.

| file | what |
| --- | --- |
| `masks/PROMPT/IMAGE.png` | 255 where the probability is above the threshold, else 0 |
| `overlays/IMAGE.png` | the image under all its masks, each prompt in its colour |
| `label_maps/IMAGE.png` | with several prompts: the number of the most probable one above the threshold, 0 elsewhere |
| `probabilities/PROMPT/IMAGE.npy` | where asked for: float32 of shape (height, width), 0 to 1 |
| `volumes/PROMPT/FILE.nii.gz` | of a NIfTI file: its slices' masks as a volume of 0 and 1 that lies over the scan |
| `labels.json` | each prompt's number in the label maps, counted from 1, and its text |
| `results.csv` | one row an image and prompt: files, number, colour, size of the mask |

IMAGE is the image's file name without its suffix, with its number where a DICOM or NIfTI file holds several
(`scan-007`); FILE is the same without that number. Of a table's record it is the table's name and the row's number
(`test-row-7`). PROMPT is the prompt's number and the words of its text
(`1-grey-matter`). All pictures have the image's own size.
"""

import csv
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor

from peft_vlsm.segmentation.data.row_images import RowImage
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.pictures import overlay
from peft_vlsm.segmentation.prediction.predictor import Prediction
from peft_vlsm.segmentation.volumes.nifti import write_mask_volume
from peft_vlsm.segmentation.volumes.slices import SLICED_SUFFIXES, Slice

IMAGE_SUFFIXES = (*".bmp .gif .jp2 .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split(), *SLICED_SUFFIXES)
# In a label map 0 is the background; it has 8 bits, and 16 where a table asks for more prompts.
PROMPTS_OF_8_BITS = 255
MAXIMUM_PROMPTS = 65535
# CSS names, so that results.csv can be read by eye; further prompts get hues.
COLORS = ("darkorange", "deepskyblue", "limegreen", "magenta", "yellow", "red", "blue", "cyan")
GOLDEN_ANGLE = 137.508
Place = Slice | RowImage
# File systems take names of 255 bytes; what is added to a name stays below the difference.
NAME_BYTES = 200
SLUG_CHARACTERS = 50


@dataclass(frozen=True)
class MaskRow:
    """
    A row of `results.csv`.

    Args:
        image (`str`): the image's file, or what names the record that holds it.
        slice (`int`, *optional*): which of the images in a DICOM or NIfTI file, counted from 0. None, an empty cell,
            where it holds one alone.
        prompt (`str`): the prompt.
        label (`int`): its number in the label map.
        color (`str`): its colour in the overlay, as CSS spells it.
        mask (`str`): the mask's file, relative to the folder.
        mask_share (`float`): the part of the image's pixels that the mask holds, 0 to 1.
        mean_probability (`float`, *optional*): averaged over the mask. None, an empty cell, where the mask is empty.
        presence (`float`, *optional*): the probability that the image has what the prompt names. None, an empty cell,
            for models that do not say (SAM3 does).
    """

    image: str
    slice: int | None
    prompt: str
    label: int
    color: str
    mask: str
    mask_share: float
    mean_probability: float | None
    presence: float | None


def find_images(path: str) -> tuple[list[Path], int]:
    """
    The image that a path names, or the images in the folder that it names.

    Args:
        path (`str`): a file of any name, or a folder. Of a folder the files whose suffix is in `IMAGE_SUFFIXES` are
            taken, sorted by name; hidden files and sub-folders are passed over.

    Returns:
        `tuple[list[Path], int]`: the files, not opened yet, and how many entries of the folder were passed over.

    Raises:
        InputError: the path does not exist, or the folder holds no image.
    """
    # Unlike Path.exists, it is False for names that the file system cannot even hold.
    if not os.path.exists(path):
        raise InputError(f"--image {path} does not exist; name an image or a folder of images")
    if not os.path.isdir(path):
        return [Path(path)], 0
    try:
        entries = sorted(Path(path).iterdir())
    except OSError as error:
        raise InputError(f"--image {path} cannot be read: {error.strerror}") from error
    images = [entry for entry in entries if _is_image_name(entry.name) and not entry.is_dir()]
    if not images:
        raise InputError(f"--image {path} holds no image ({' '.join(IMAGE_SUFFIXES)}), sub-folders aside")
    return images, len(entries) - len(images)


def _is_image_name(name: str) -> bool:
    # macOS puts ._scan.png beside scan.png on foreign disks, which is no image.
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def name_images(files: Sequence[Path]) -> list[str]:
    """
    A name for each image's results: its file name without the suffix, with it where two would be the same.

    Args:
        files (`Sequence[Path]`): the images.

    Returns:
        `list[str]`: names without a suffix, no two of them equal, upper and lower case counted as the same.
    """
    stems = [_clean(file.stem) for file in files]
    count = Counter(map(_alike, stems))
    wanted = [
        stem if count[_alike(stem)] == 1 else _clean(file.name.replace(".", "_"))
        for stem, file in zip(stems, files, strict=True)
    ]
    names: list[str] = []
    taken: set[str] = set()
    for name in wanted:
        free, number = name, 1
        while _alike(free) in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(_alike(free))
        names.append(free)
    return names


def _clean(name: str) -> str:
    safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', "_", name)
    return safe.encode()[:NAME_BYTES].decode(errors="ignore").strip(" .") or "image"


def _alike(name: str) -> str:
    """What a file system that ignores case and ways to write an accent takes two names for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def name_prompt(number: int, prompt: str) -> str:
    """A folder name for a prompt: its number, which keeps names apart, and its words, as far as it has any."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", prompt).lower())
    return "-".join([str(number), *words])[:SLUG_CHARACTERS].rstrip("-")


def name_color(number: int) -> str:
    """The colour of a prompt's mask, as CSS spells it; no two of the first 255 prompts have the same one."""
    if number <= len(COLORS):
        return COLORS[number - 1]
    return f"hsl({round(number * GOLDEN_ANGLE) % 360}, {100 - 20 * (number % 2)}%, {35 + 15 * (number % 3)}%)"


class PredictionFolder:
    """
    Writes the results of one run into a folder.

    Args:
        folder (`Path`): an empty folder.
        asked (`Mapping[Slice | RowImage, Sequence[int]]`): the images, and the places of the prompts that each is
            asked for.
        prompts (`list[str]`): at most 65535, in the order of their numbers.
        threshold (`float`): a pixel belongs to a mask where its probability is above this, 0 to 1.
        save_probabilities (`bool`): whether to write the probabilities, too.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[Place, Sequence[int]],
        prompts: list[str],
        threshold: float,
        save_probabilities: bool,
    ):
        self.folder, self.asked, self.prompts = folder, asked, prompts
        self.names = dict(zip(asked, name_images([place.name for place in asked]), strict=True))
        self.volumes = _MaskVolumes(folder, asked, prompts)
        # Taken in float64, where logit(0.5) is exactly 0; thresholds of 0 and 1 become minus and plus infinity.
        self.cut = np.float32(torch.tensor(threshold, dtype=torch.float64).logit().item())
        self.save_probabilities = save_probabilities
        self.rows: list[MaskRow] = []

    def add(self, prediction: Prediction) -> None:
        """
        Writes a prediction's mask and, after the image's last prompt, what shows all its prompts together.

        Args:
            prediction ([`Prediction`]): its source is a [`Slice`] or a [`RowImage`]. They come as [`predict`] yields
                them: image by image, all prompts of each.
        """
        place, number = prediction.source, prediction.prompt + 1
        name, wanted = self.names[place], self.asked[place]
        logits = prediction.logits.numpy()
        mask = logits > self.cut
        if prediction.prompt == wanted[0]:
            self._picture = prediction.image
            kind = np.uint8 if len(self.prompts) <= PROMPTS_OF_8_BITS else np.uint16
            self._labels = np.zeros(mask.shape, dtype=kind)
            self._highest = np.full(mask.shape, self.cut)
        # Logits and not probabilities decide: two probabilities near 1 both round to 1.
        self._labels[logits > self._highest] = number
        self._highest = np.maximum(self._highest, logits)
        self._picture = overlay(self._picture, mask, ImageColor.getrgb(name_color(number))[:3])
        self._write_mask(name, prediction, mask)
        self.volumes.add(place, prediction.prompt, mask)
        if prediction.prompt == wanted[-1]:
            self._picture.save(_with_folder(self.folder / "overlays" / f"{name}.png"))
            if len(self.prompts) > 1:
                Image.fromarray(self._labels).save(_with_folder(self.folder / "label_maps" / f"{name}.png"))

    def _write_mask(self, name: str, prediction: Prediction, mask: np.ndarray) -> None:
        number, prompt = prediction.prompt + 1, self.prompts[prediction.prompt]
        probabilities = prediction.logits.sigmoid().numpy()
        mask_file = Path("masks", name_prompt(number, prompt), f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(_with_folder(self.folder / mask_file))
        if self.save_probabilities:
            file = self.folder / "probabilities" / name_prompt(number, prompt) / f"{name}.npy"
            np.save(_with_folder(file), probabilities)
        row = MaskRow(
            image=str(prediction.source.file),
            slice=prediction.source.index,
            prompt=prompt,
            label=number,
            color=name_color(number),
            mask=mask_file.as_posix(),
            mask_share=round(float(mask.mean()), 6),
            mean_probability=round(float(probabilities[mask].mean(dtype=np.float64)), 6) if mask.any() else None,
            presence=None if prediction.presence is None else round(prediction.presence, 6),
        )
        self.rows.append(row)

    def write_tables(self) -> None:
        """Writes `results.csv` and `labels.json`, after the last image."""
        # File names that are not valid Unicode occur; a table of them must not fail.
        results = self.folder / "results.csv"
        with results.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            table = csv.DictWriter(file, [field.name for field in fields(MaskRow)])
            table.writeheader()
            table.writerows(asdict(row) for row in self.rows)
        labels = {str(number): prompt for number, prompt in enumerate(self.prompts, start=1)}
        text = json.dumps(labels, indent=2, ensure_ascii=False)
        (self.folder / "labels.json").write_text(text + "\n", encoding="utf-8")


class _MaskVolumes:
    """Gathers the masks of a NIfTI file's slices, and writes them when its last one is there."""

    def __init__(self, folder: Path, asked: Iterable[Place], prompts: list[str]):
        self.folder, self.prompts = folder, prompts
        self.sizes = Counter(place.file for place in asked if isinstance(place, Slice) and place.in_volume)
        whole = [Slice(file) for file in self.sizes]
        self.names = dict(zip(self.sizes, name_images([place.name for place in whole]), strict=True))
        self.slices: dict[tuple[Path, int], list[np.ndarray]] = {}

    def add(self, place: Place, prompt: int, mask: np.ndarray) -> None:
        if isinstance(place, RowImage) or place.file not in self.sizes:
            return
        slices = self.slices.setdefault((place.file, prompt), [])
        slices.append(mask)
        if len(slices) == self.sizes[place.file]:
            folder = self.folder / "volumes" / name_prompt(prompt + 1, self.prompts[prompt])
            target = _with_folder(folder / f"{self.names[place.file]}.nii.gz")
            write_mask_volume(target, np.stack(slices), place.file)
            del self.slices[place.file, prompt]


def _with_folder(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
