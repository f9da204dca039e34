"""Names of results that never collide nor leave the folder, and which files of a folder are images."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prediction.predictor import Prediction
from peft_vlsm.segmentation.prediction.results_folder import (
    PROMPTS_OF_8_BITS,
    PredictionFolder,
    find_images,
    name_color,
    name_images,
    name_prompt,
)
from peft_vlsm.segmentation.volumes.slices import Slice

NFC, NFD = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
IMAGE_NAMES = {
    "plain": (["b.png", "a.jpg"], ["b", "a"]),
    "two suffixes": (["scan.png", "scan.jpg", "other.png"], ["scan_png", "scan_jpg", "other"]),
    "the name that a suffix makes": (["a_png.png", "a.png", "a.jpg"], ["a_png", "a_png-2", "a_jpg"]),
    "the name that a number makes": (["x/a.png", "y/a.png", "a_png-2.png"], ["a_png", "a_png-2", "a_png-2-2"]),
    "upper and lower case": (["A.png", "a.png"], ["A_png", "a_png-2"]),
    "two spellings of an accent": ([NFC, NFD], [NFC.replace(".", "_"), NFD.replace(".", "_") + "-2"]),
    "Unicode and dots": (["脳 1.5T.png", "мозг.tif"], ["脳 1.5T", "мозг"]),
    "what other systems refuse": (['a:b?"\n\\c.png', "...png", "\udcff.png"], ["a_b____c", "image", "_"]),
    "hidden": ([".scan.png"], ["scan"]),
}


@pytest.mark.parametrize("files, names", IMAGE_NAMES.values(), ids=IMAGE_NAMES)
def test_names_of_images(files, names):
    assert name_images([Path(file) for file in files]) == names


def test_long_names_stay_apart_and_fit_the_file_system(tmp_path):
    names = name_images([Path("ü" * 120 + end + ".png") for end in "abc"])
    assert len(set(names)) == 3
    for name in names:
        (tmp_path / f"{name}.png").touch()


PROMPT_NAMES = {
    "words": ("one small red circle, located in top left", "1-one-small-red-circle-located-in-top-left"),
    "upper case": ("Grey Matter", "1-grey-matter"),
    "a path": ("../../etc/passwd", "1-etc-passwd"),
    "an absolute path": ("/tmp", "1-tmp"),
    "no words": ("?!", "1"),
    "Unicode": ("Тёмное пятно 脳", "1-тёмное-пятно-脳"),
    "long": ("a" * 48 + " b", "1-" + "a" * 48),
}


@pytest.mark.parametrize("prompt, name", PROMPT_NAMES.values(), ids=PROMPT_NAMES)
def test_names_of_prompts(prompt, name, tmp_path):
    assert name_prompt(1, prompt) == name
    assert name_prompt(2, prompt) == "2" + name[1:]
    (tmp_path / name_prompt(1, prompt)).mkdir()


def test_every_prompt_has_a_colour_of_its_own():
    colors = {ImageColor.getrgb(name_color(number)) for number in range(1, PROMPTS_OF_8_BITS + 1)}
    assert len(colors) == PROMPTS_OF_8_BITS


def test_a_folder_gives_its_images_in_order(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.tiff", "notes.txt", "._a.png", ".DS_Store", "png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "d.png").touch()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    files, passed_over = find_images(str(tmp_path))
    assert [file.name for file in files] == ["a.jpeg", "b.PNG", "broken.png", "c.tiff"]
    assert passed_over == 5
    assert find_images(str(tmp_path / "notes.txt")) == ([tmp_path / "notes.txt"], 0), "a file may have any name"


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        find_images(str(tmp_path))


def test_a_file_name_that_is_not_unicode(tmp_path):
    file = Slice(Path(os.fsdecode(b"/data/caf\xe9.png")))
    results = PredictionFolder(tmp_path, {file: [0]}, ["disc"], 0.5, False)
    results.add(Prediction(file, Image.new("RGB", (4, 3)), 0, torch.ones(3, 4)))
    results.write_tables()
    assert (tmp_path / "masks" / "1-disc" / "caf_.png").is_file()
    assert "/data/caf\\udce9.png" in (tmp_path / "results.csv").read_text(encoding="utf-8")


def test_the_higher_logit_wins_where_both_probabilities_round_to_one(tmp_path):
    file, image = Slice(Path("a.png")), Image.new("RGB", (3, 1))
    results = PredictionFolder(tmp_path, {file: [0, 1]}, ["disc", "ring"], 0.5, False)
    results.add(Prediction(file, image, 0, torch.tensor([[40.0, 50.0, 0.0]])))
    results.add(Prediction(file, image, 1, torch.tensor([[50.0, 40.0, 0.0]])))
    with Image.open(tmp_path / "label_maps" / "a.png") as labels:
        assert np.asarray(labels).tolist() == [[2, 1, 0]], "a probability of exactly one half is background"


def test_label_maps_of_more_than_255_prompts_have_16_bits(tmp_path):
    """As a table may ask for them, a few an image."""
    asked, prompts = (
        {Slice(Path("a.png")): [1, 299], Slice(Path("b.png")): [0, 256]},
        [f"disc {n}" for n in range(300)],
    )
    results = PredictionFolder(tmp_path, asked, prompts, 0.5, False)
    for place, (first, last) in asked.items():
        results.add(Prediction(place, Image.new("RGB", (2, 1)), first, torch.tensor([[1.0, -1.0]])))
        results.add(Prediction(place, Image.new("RGB", (2, 1)), last, torch.tensor([[-1.0, 1.0]])))
    for name, numbers in (("a.png", [2, 300]), ("b.png", [1, 257])):
        with Image.open(tmp_path / "label_maps" / name) as labels:
            assert np.asarray(labels).tolist() == [numbers]
        with Image.open(tmp_path / "overlays" / name) as shown:
            assert len(shown.getcolors()) == 2


def test_presence_is_a_column(tmp_path):
    place = Slice(Path("a.png"))
    results = PredictionFolder(tmp_path, {place: [0]}, ["disc"], 0.5, False)
    results.add(Prediction(place, Image.new("RGB", (2, 1)), 0, torch.ones(1, 2), presence=0.25))
    results.write_tables()
    header, row = (tmp_path / "results.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["presence"] == "0.25"
