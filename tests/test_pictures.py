"""Overlays and contact sheets: the mask is where it belongs, and prompts are whole."""

import time

import numpy as np
import pytest
from PIL import Image

from peft_vlsm.segmentation import pictures
from peft_vlsm.segmentation.pictures import CELL, GAP, Sample, contact_sheet, overlay


def _square(side):
    mask = np.zeros((side, side), bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    return mask


def test_overlay_tints_the_mask_and_nothing_else():
    image = Image.new("L", (80, 80), 100)
    mask = _square(80)
    result = np.asarray(overlay(image, mask, color=(255, 0, 0), opacity=0.5)).astype(int)
    assert result.shape == (80, 80, 3)
    assert (result[~mask] == 100).all()
    assert (result[20, 20:40] == (255, 0, 0)).all(), "the border is in full colour"
    assert np.abs(result[30, 30] - (178, 50, 50)).max() <= 1
    assert image.getpixel((30, 30)) == 100, "the image itself is left alone"


def test_overlay_stretches_a_mask_over_its_image():
    result = np.asarray(overlay(Image.new("RGB", (200, 100)), _square(20), color=(0, 0, 200), opacity=1.0))
    rows, columns = np.nonzero(result[..., 2])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (25, 49, 50, 99)


@pytest.mark.parametrize("filled, color", [(True, 255), (False, 0)])
def test_overlay_of_full_and_empty_masks(filled, color):
    result = np.asarray(overlay(Image.new("RGB", (30, 30)), np.full((30, 30), filled), (255, 255, 255), opacity=1.0))
    assert (result == color).all()


def test_contact_sheet_holds_every_sample():
    samples = [
        Sample(Image.new("RGB", size, "red"), "disc", _square(32), _square(32), 1.0) for size in ((60, 60), (90, 60))
    ]
    sheet = np.asarray(contact_sheet(samples)).astype(int)
    assert sheet.shape[1] == 4 * (CELL + GAP) + GAP
    red = (sheet == (255, 0, 0)).all(axis=2)
    first_column = red[:, : CELL + GAP].any(axis=1)
    assert first_column.sum() == CELL + CELL * 60 // 90
    assert not red[:, CELL + GAP + 2 : 2 * (CELL + GAP)].any(), "the prompt's column holds no picture"


def test_a_row_grows_with_its_prompt():
    image = Image.new("RGB", (64, 64))
    heights = [
        contact_sheet([Sample(image, text, _square(64), _square(64), 1.0)]).height
        for text in ("disc", "a long prompt " * 60)
    ]
    assert heights[1] > heights[0] + CELL


@pytest.mark.parametrize(
    "text", ["one small red circle, located in top left of the image", "x" * 90, "grüner Polyp", "a\nb"]
)
def test_wrapping_loses_no_letter_and_keeps_within_the_width(text):
    font = pictures.ImageFont.truetype(pictures.FONT_FILE, pictures.FONT_SIZE)
    lines = pictures._wrap(text, font, 120)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(font.getlength(line) <= 120 for line in lines)


def test_an_overlay_of_a_photograph_takes_seconds():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[500:2500, 500:3500] = True
    started = time.monotonic()
    result = np.asarray(overlay(Image.new("RGB", (4000, 3000)), mask, (255, 0, 0), opacity=0.4))
    assert time.monotonic() - started < 60
    # The border is as wide as 1/200 of the shorter side, and the area inside it is tinted.
    assert [result[500 + depth, 2000, 0] for depth in (0, 14, 15, 1000)] == [255, 255, 102, 102]
    assert result[499, 2000, 0] == 0
