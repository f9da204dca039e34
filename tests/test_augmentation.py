"""Images, masks and prompts are varied together; what is drawn follows from seed, epoch and row alone."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_processor, write_dataset
from PIL import Image

from peft_vlsm.segmentation.data.annotations import AnnotationRow, read_annotations
from peft_vlsm.segmentation.data.augmentation import Augmentation, mirror_prompt
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.errors import InputError

ALL = Augmentation(flip=True, vertical_flip=True, rotation=30, scale=0.3, crop=0.4, colour=0.3)
GEOMETRY = {
    "flip": Augmentation(flip=True),
    "vertical flip": Augmentation(vertical_flip=True),
    "rotation": Augmentation(rotation=90),
    "scale": Augmentation(scale=0.5),
    "crop": Augmentation(crop=0.6),
    "all of them": Augmentation(True, True, 90, 0.5, 0.6),
}


def _pair():
    """A white block off the centre, on black."""
    mask = np.zeros((40, 60), bool)
    mask[6:22, 10:34] = True
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB"), mask


def _apply(augmentation, seed, image=None, mask=None):
    white, block = _pair()
    draw = augmentation.draw(np.random.default_rng(seed))
    return augmentation.apply(draw, image or white, block if mask is None else mask)


@pytest.mark.parametrize("augmentation", GEOMETRY.values(), ids=GEOMETRY)
def test_the_mask_follows_its_image(augmentation):
    changed = 0
    for seed in range(30):
        image, mask = _apply(augmentation, seed)
        bright = np.asarray(image.convert("L")) > 127
        assert bright.shape == mask.shape and mask.dtype == bool and mask.any()
        assert (bright != mask).mean() < 0.03
        changed += mask.shape != (40, 60) or not np.array_equal(mask, _pair()[1])
    assert changed > 5


@pytest.mark.parametrize("degrees", [90, -90])
def test_a_quarter_turn_is_exact(degrees):
    mask = np.zeros((5, 5), bool)
    mask[0, 1] = True
    augmentation = Augmentation(rotation=180)
    draw = augmentation.draw(np.random.default_rng(0))
    turned = augmentation.apply(
        type(draw)(False, False, degrees, 1.0, draw.generator), Image.fromarray(mask).convert("RGB"), mask
    )[1]
    assert np.array_equal(turned, np.rot90(mask, -1 if degrees > 0 else 1)) and turned.sum() == 1


def test_what_is_drawn_fills_its_range_on_both_sides():
    augmentation = Augmentation(flip=True, vertical_flip=True, rotation=20, scale=0.4)
    draws = [augmentation.draw(np.random.default_rng(seed)) for seed in range(200)]
    for values, lowest, highest in (
        ([draw.degrees for draw in draws], -20, 20),
        ([draw.factor for draw in draws], 0.6, 1.4),
    ):
        margin = (highest - lowest) / 20
        assert lowest <= min(values) < lowest + margin and highest - margin < max(values) <= highest
    flips = np.array([(draw.flip, draw.vertical_flip) for draw in draws])
    assert (abs(flips.mean(axis=0) - 0.5) < 0.1).all() and abs((flips[:, 0] & flips[:, 1]).mean() - 0.25) < 0.1


def test_a_turned_image_is_smooth_and_its_mask_is_not():
    image, mask = _apply(Augmentation(rotation=30), 0)
    assert len(np.unique(np.asarray(image))) > 10 and mask.dtype == bool


def test_scale_enlarges_about_the_centre():
    augmentation = Augmentation(scale=0.9)
    mask = np.zeros((40, 40), bool)
    mask[15:25, 15:25] = True
    draw = augmentation.draw(np.random.default_rng(0))
    double = type(draw)(False, False, 0.0, 2.0, draw.generator)
    result = augmentation.apply(double, Image.fromarray(mask).convert("RGB"), mask)[1]
    expected = np.zeros((40, 40), bool)
    expected[10:30, 10:30] = True
    assert np.array_equal(result, expected)


def test_a_crop_keeps_some_of_a_tiny_object_and_takes_any_window_of_an_empty_mask():
    tiny, empty = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    tiny[39, 0] = True
    crop = Augmentation(crop=0.9)
    for seed in range(40):
        assert _apply(crop, seed, mask=tiny)[1].any()
    shapes = [_apply(crop, seed, mask=empty)[1].shape for seed in range(40)]
    assert len(set(shapes)) > 30 and all(4 <= height <= 40 and 6 <= width <= 60 for height, width in shapes)


def test_height_width_and_place_of_a_crop_do_not_depend_on_each_other():
    rows, columns = np.mgrid[:100, :120].astype(np.uint8)
    image, empty = Image.fromarray(np.stack([rows, columns, columns], axis=-1)), np.zeros((100, 120), bool)
    windows = [np.asarray(_apply(Augmentation(crop=0.5), seed, image, empty)[0]) for seed in range(200)]
    shares = np.array(
        [
            (height / 100, width / 120, window[0, 0, 0] / (100.001 - height), window[0, 0, 1] / (120.001 - width))
            for window in windows
            for height, width in [window.shape[:2]]
        ]
    )
    assert abs(np.corrcoef(shares.T) - np.eye(4)).max() < 0.25
    assert (shares.min(axis=0) < (0.55, 0.55, 0.05, 0.05)).all() and (shares.max(axis=0) > 0.95).all()
    assert shares[:, :2].min() >= 0.5


def test_an_object_does_not_turn_out_of_sight():
    corner = np.zeros((40, 60), bool)
    corner[0:2, 0:2] = True
    assert all(_apply(Augmentation(rotation=180), seed, mask=corner)[1].any() for seed in range(40))


def test_colour_leaves_the_mask_alone():
    grey = Image.new("RGB", (60, 40), (100, 120, 140))
    images = [_apply(Augmentation(colour=0.5), seed, image=grey) for seed in range(10)]
    assert len({image.getpixel((0, 0)) for image, _ in images}) == 10
    assert all(np.array_equal(mask, _pair()[1]) for _, mask in images)


def test_brightness_contrast_and_saturation_go_both_ways():
    """Contrast keeps the mean, saturation each pixel's grey: what is left of the three ratios tells them apart."""
    pixels = np.array([[[60, 90, 120], [100, 130, 160]]], np.uint8)
    before = _light_spread_and_chroma(pixels)
    factors = []
    for seed in range(60):
        image, _ = _apply(Augmentation(colour=0.3), seed, Image.fromarray(pixels), np.zeros((1, 2), bool))
        light, spread, chroma = _light_spread_and_chroma(np.asarray(image)) / before
        factors.append((light, spread / light, chroma / spread))
    factors = np.array(factors)
    assert (factors.min(axis=0) < 0.8).all() and (factors.max(axis=0) > 1.2).all()
    assert factors.min() > 0.6 and factors.max() < 1.4


def _light_spread_and_chroma(pixels):
    """The mean grey level of two pixels, how far these are apart, and how far each one's colours are."""
    grey = pixels[0].astype(float) @ (0.299, 0.587, 0.114)
    return np.array([grey.mean(), grey[1] - grey[0], np.ptp(pixels[0].astype(float), axis=1).mean()])


@pytest.mark.parametrize(
    "field, value", [("rotation", -1), ("rotation", 181), ("scale", 1), ("crop", 1), ("colour", float("nan"))]
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(InputError, match=f"--augment_{field} {value} must lie between 0 and"):
        Augmentation(**{field: value})


PROMPTS = {
    "plain": ("a polyp on the left of the image", "a polyp on the right of the image"),
    "case": ("Left, RIGHT and left", "Right, LEFT and right"),
    "top left": ("located in top left, bottom right", "located in top right, bottom left"),
    "hyphen": ("the left-hand side", "the right-hand side"),
    "whole words": ("a bright, leftover copyright", "a bright, leftover copyright"),
    "most": ("the leftmost one", "the rightmost one"),
    "the heart": (
        "Left ventricular cavity, left atrium left of it",
        "Left ventricular cavity, left atrium right of it",
    ),
    "its vessels": (
        "left main coronary artery, left circumflex, left anterior descending, left main bronchus",
        "left main coronary artery, left circumflex, left anterior descending, right main bronchus",
    ),
    "no side": ("one small polyp", "one small polyp"),
    "empty": ("", ""),
}


@pytest.mark.parametrize("prompt, mirrored", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_that_names_a_side_is_mirrored_and_back(prompt, mirrored):
    assert mirror_prompt(prompt) == mirrored and mirror_prompt(mirrored) == prompt


def test_a_prompt_is_mirrored_top_to_bottom():
    prompt = "Upper lobe, top left, bottom, stop"
    assert mirror_prompt(prompt, vertical=True) == "Lower lobe, bottom left, top, stop"


@pytest.fixture
def rows(tmp_path):
    return read_annotations(write_dataset(tmp_path / "data"), "train")


def _same(one, other):
    return torch.equal(one.pixel_values, other.pixel_values) and torch.equal(one.mask, other.mask)


def test_what_is_drawn_follows_from_seed_epoch_and_row(rows):
    processor = tiny_processor()
    whole = SegmentationDataset(rows, processor, seed=3, augmentation=ALL)
    part = pickle.loads(pickle.dumps(SegmentationDataset(rows[2:4], processor, seed=3, augmentation=ALL)))
    for dataset in (whole, part):
        dataset.set_epoch(5)
    assert _same(whole[2], part[0]) and whole[2].prompt == part[0].prompt
    first = [whole[place] for place in range(6)]
    whole.set_epoch(6)
    assert not any(_same(whole[place], first[place]) for place in range(6))
    other = SegmentationDataset(rows, processor, seed=4, augmentation=ALL)
    other.set_epoch(5)
    assert not any(_same(other[place], first[place]) for place in range(6))


def test_augmentation_changes_no_prompt_that_is_drawn(rows):
    processor = tiny_processor()
    plain, varied = (SegmentationDataset(rows, processor, 3, augmentation=choice) for choice in (None, ALL))
    assert [plain.prompt(place) for place in range(6)] == [varied.prompt(place) for place in range(6)]


def test_the_prompt_agrees_with_the_image(tmp_path):
    image, mask = _pair()
    image.save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    rows = [
        AnnotationRow(index, Path(tmp_path / "i.png"), Path(tmp_path / "m.png"), {"p1": ["the block at the top left"]})
        for index in range(20)
    ]
    augmentation = Augmentation(flip=True, vertical_flip=True)
    dataset = SegmentationDataset(rows, tiny_processor(), seed=0, augmentation=augmentation)
    seen = set()
    for place in range(20):
        example = dataset[place]
        assert example.prompt == dataset.prompt(place)
        height, width = (example.mask.nonzero().float().mean(0) / example.mask.shape[-1]).tolist()
        sides = f"{'top' if height < 0.5 else 'bottom'} {'left' if width < 0.5 else 'right'}"
        assert example.prompt == f"the block at the {sides}"
        seen.add(sides)
    assert len(seen) == 4


def test_an_override_is_mirrored_too_and_evaluation_has_no_augmentation(rows):
    dataset = SegmentationDataset(
        rows, tiny_processor(), seed=0, override_prompt="left", augmentation=Augmentation(flip=True)
    )
    assert {dataset.prompt(place) for place in range(6)} == {"left", "right"}
    with pytest.raises(InputError, match="augmentation needs a seed"):
        SegmentationDataset(rows, tiny_processor(), augmentation=ALL)
