"""Overlays and contact sheets: the mask is where it belongs, and prompts are whole."""

import time

import numpy as np
import pytest
from PIL import Image

from peft_vlsm.segmentation import pictures
from peft_vlsm.segmentation.pictures import CELL, GAP, Sample, contact_sheet, heat_map, overlay


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


def test_a_note_stands_above_the_prompt():
    image = Image.new("RGB", (64, 64))
    plain, noted = (
        np.asarray(contact_sheet([Sample(image, "disc", _square(64), _square(64), 1.0, note)])).astype(int)
        for note in ("", "worst 1: a.png, p3")
    )
    prompts = slice(CELL + 2 * GAP, 2 * (CELL + GAP))
    ink = [(sheet[36:, prompts] < 128).all(axis=2).any(axis=1) for sheet in (plain, noted)]
    assert ink[1].nonzero()[0].max() > ink[0].nonzero()[0].max() + 20, "the prompt moved down"
    plain[:, prompts] = noted[:, prompts] = 0
    assert np.array_equal(plain, noted)


def _field_colors(picture, columns):
    """The colours that fill the picture's fields, each with its number of pixels, the most frequent first."""
    counts = sorted(((count, color) for count, color in picture.getcolors(1 << 24)), reverse=True)
    return [color for _, color in counts if color != (255, 255, 255)][:columns]


def test_a_heat_map_is_lighter_where_scores_are_higher():
    def color(value):
        return _field_colors(heat_map(np.array([[value]]), ["a"], ["b"], "Dice"), 1)[0]

    assert sum(color(0.1)) < sum(color(0.5)) < sum(color(0.95))
    assert color(10.0) == color(1.0) != color(0.5)


def test_a_heat_map_has_a_field_for_each_value_and_none_for_what_is_missing():
    colors = _field_colors(heat_map(np.array([[0.0, 0.5], [1.0, np.nan]]), ["a", "b"], ["c", "d"], "Dice"), 3)
    assert len(set(colors)) == 3
    plain = heat_map(np.full((1, 1), np.nan), ["a"], ["b"], "Dice")
    assert plain.getpixel((plain.width // 2 + 25, plain.height // 3)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["$a$b", "grün", "a_b^c{", "x" * 80])
def test_a_heat_map_takes_any_name(name):
    narrow, wide = (heat_map(np.eye(2), [other, "b"], [other, "d"], other) for other in ("a", name))
    assert wide.mode == "RGB" and wide.width >= narrow.width


def test_a_heat_map_grows():
    one, many = (heat_map(np.zeros(shape), ["a"] * shape[0], ["b"] * shape[1], "Dice") for shape in ((1, 1), (8, 9)))
    assert many.width > 3 * one.width and many.height > 2 * one.height


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
