"""Attributes of drawn masks are the words that a person would use."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from peft_vlsm.segmentation.prompts.attributes import measure_attributes

SIDE = 240
MIDDLE = SIDE // 2
GREY = np.full((SIDE, SIDE), 128, dtype=np.uint8)


def draw(*shapes: tuple, degrees: float = 0) -> np.ndarray:
    """Draws ("ellipse" | "rectangle" | "polygon", coordinates) into a mask and turns it round its middle."""
    image = Image.new("1", (SIDE, SIDE))
    for kind, coordinates in shapes:
        getattr(ImageDraw.Draw(image), kind)(coordinates, fill=1)
    return np.array(image.rotate(degrees))


def box(column: float, row: float, half_width: float, half_height: float | None = None) -> tuple:
    """Corners of a box from its centre in thirds of the image's side and its half extents in pixels."""
    x, y, half_height = column * SIDE / 3, row * SIDE / 3, half_height or half_width
    return x - half_width, y - half_height, x + half_width, y + half_height


STAR = [
    (MIDDLE + r * np.cos(a), MIDDLE + r * np.sin(a))
    for a, r in zip(np.arange(10) * np.pi / 5, [90, 35] * 5, strict=True)
]


@pytest.mark.parametrize("degrees", [0, 20, 45, 77])
@pytest.mark.parametrize(
    ("shape", "figure"),
    [
        ("circle", ("ellipse", box(1.5, 1.5, 50))),
        ("circle", ("ellipse", box(1.5, 1.5, 7))),
        ("oval", ("ellipse", box(1.5, 1.5, 80, 40))),
        ("oval", ("ellipse", box(1.5, 1.5, 50, 38))),
        ("square", ("rectangle", box(1.5, 1.5, 45))),
        ("rectangle", ("rectangle", box(1.5, 1.5, 70, 30))),
        ("triangle", ("polygon", [(MIDDLE, 40), (60, 170), (190, 170)])),
        ("triangle", ("polygon", [(60, 60), (60, 180), (160, 180)])),
        ("irregular", ("polygon", STAR)),
    ],
)
def test_shape_at_any_angle(shape, figure, degrees):
    assert measure_attributes(GREY, draw(figure, degrees=degrees)).shape == shape


def test_ring_and_crescent_are_irregular():
    ring = draw(("ellipse", box(1.5, 1.5, 80))) & ~draw(("ellipse", box(1.5, 1.5, 60)))
    crescent = draw(("ellipse", box(1.5, 1.5, 80))) & ~draw(("ellipse", box(1.8, 1.5, 80)))
    assert measure_attributes(GREY, ring).shape == measure_attributes(GREY, crescent).shape == "irregular"


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (np.eye(SIDE, dtype=bool), "irregular"),
        (np.pad([[True]], (0, SIDE - 1)), "square"),
        (np.pad([[True] * SIDE], ((0, SIDE - 1), (0, 0))), "rectangle"),
        (np.ones((SIDE, SIDE), bool), "square"),
    ],
    ids=["diagonal line", "one pixel", "one row", "whole image"],
)
def test_extreme_masks_have_attributes(mask, shape):
    words = measure_attributes(GREY, mask)
    assert (words.number, words.shape) == ("one", shape)


@pytest.mark.parametrize(
    ("word", "rgb"),
    [
        ("red", (215, 35, 35)),
        ("red", (225, 20, 60)),
        ("orange", (245, 135, 20)),
        ("yellow", (240, 220, 40)),
        ("green", (35, 165, 55)),
        ("cyan", (40, 205, 220)),
        ("blue", (40, 70, 220)),
        ("purple", (135, 45, 175)),
        ("pink", (250, 150, 195)),
        ("pink", (255, 180, 170)),
        ("brown", (120, 70, 35)),
        ("white", (245, 245, 245)),
        ("gray", (130, 125, 128)),
        ("black", (15, 15, 18)),
    ],
)
def test_colour_of_a_colour_image(word, rgb):
    mask = draw(("ellipse", box(1.5, 1.5, 50)))
    image = np.full((SIDE, SIDE, 3), (90, 160, 200), dtype=np.uint8)
    image[mask] = rgb
    assert measure_attributes(image, mask).colour == word


@pytest.mark.parametrize("window", [1.0, 0.3], ids=["full window", "dark window"])
@pytest.mark.parametrize(
    ("level", "word"), [(0, "dark"), (70, "dark"), (130, "gray"), (220, "bright"), (255, "bright")]
)
def test_colour_of_a_greyscale_image_is_relative_to_its_brightest(level, word, window):
    mask = draw(("ellipse", box(1.5, 1.5, 50)))
    image = np.where(mask, level, 0)
    image[:20] = 255
    image = (image * window).astype(np.uint8)
    assert measure_attributes(image, mask).colour == word
    assert measure_attributes(np.stack([image] * 3, axis=-1), mask).colour == word


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_coloured_pixel_makes_a_colour_image(channel):
    image = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    mask = draw(("ellipse", box(1.5, 1.5, 50)))
    image[mask] = 70
    assert measure_attributes(image, mask).colour == "gray"
    image[mask] = 20
    assert measure_attributes(image, mask).colour == "dark"
    image[0, 0, channel] = 129
    assert measure_attributes(image, mask).colour == "black"


def test_black_image_is_dark():
    assert measure_attributes(np.zeros_like(GREY), draw(("ellipse", box(1.5, 1.5, 50)))).colour == "dark"


@pytest.mark.parametrize(
    ("share", "word"),
    [(0.02, "small"), (0.095, "small"), (0.1, "medium"), (0.195, "medium"), (0.2, "large"), (0.9, "large")],
)
def test_size_is_the_share_of_the_image(share, word):
    mask = np.zeros((200, 200), dtype=bool)
    mask[: round(200 * share)] = True
    assert measure_attributes(np.zeros((200, 200), np.uint8), mask).size == word


@pytest.mark.parametrize(
    ("count", "word"), [(1, "one"), (2, "two"), (5, "five"), (9, "nine"), (10, "many"), (12, "many")]
)
def test_number_of_parts_leaves_specks_out(count, word):
    parts = [("rectangle", (5 + 19 * i, 50, 15 + 19 * i, 60)) for i in range(count)]
    speck = ("rectangle", (100, 200, 101, 201))
    assert measure_attributes(GREY, draw(*parts, speck)).number == word


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_location_of_one_part(row, column):
    words = [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]]
    mask = draw(("ellipse", box(column + 0.5, row + 0.5, 20)))
    assert measure_attributes(GREY, mask).location == words[row][column]


@pytest.mark.parametrize("height, width", [(30, 90), (90, 30)])
def test_location_goes_by_the_images_own_height_and_width(height, width):
    for row, vertical in enumerate(("top", "", "bottom")):
        for column, horizontal in enumerate(("left", "", "right")):
            mask = np.zeros((height, width), bool)
            mask[row * height // 3 + 1 :, column * width // 3 + 1 :][: height // 3 - 2, : width // 3 - 2] = True
            location = measure_attributes(np.full((height, width), 128, np.uint8), mask).location
            assert location == (f"{vertical} {horizontal}".strip() or "center")


def test_location_of_several_parts_names_the_three_largest_once_each():
    parts = [("ellipse", box(0.5, 0.5, 20)), ("ellipse", box(2.5, 1.5, 30)), ("ellipse", box(2.5, 2.5, 10))]
    assert measure_attributes(GREY, draw(*parts)).location == "right, top left, bottom right"
    assert (
        measure_attributes(GREY, draw(*parts, ("ellipse", box(1.5, 1.5, 8)))).location
        == "right, top left, bottom right"
    )
    twins = [("ellipse", box(0.2, 0.2, 10)), ("ellipse", box(0.7, 0.7, 10))]
    assert measure_attributes(GREY, draw(*twins)).location == "top left"


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (GREY, np.zeros((SIDE, SIDE), bool), "empty"),
        (GREY, np.ones((SIDE, SIDE + 1), bool), "mask is bool of shape"),
        (GREY, np.ones((SIDE, SIDE), np.uint8), "mask is uint8"),
        (GREY.astype(np.float32), np.ones((SIDE, SIDE), bool), "image is float32"),
        (np.zeros((SIDE, SIDE, 4), np.uint8), np.ones((SIDE, SIDE), bool), "image is uint8 of shape"),
    ],
)
def test_wrong_input_is_named(image, mask, message):
    with pytest.raises(ValueError, match=message):
        measure_attributes(image, mask)
