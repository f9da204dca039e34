"""Images, masks and prompts become the tensors that the model takes; damaged files are named."""

import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from builders import IMAGE_SIZE, TOKENS, tiny_clipseg, tiny_processor, write_dataset
from PIL import Image
from torch.utils.data import DataLoader

from peft_vlsm.segmentation.data.annotations import AnnotationRow, read_annotations
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.data.images import ImageBytes, check_pair, open_image, open_mask, open_pair
from peft_vlsm.segmentation.data.transforms import fit_processor, image_to_tensor, mask_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError


@pytest.fixture(scope="module")
def config():
    return tiny_clipseg().config


@pytest.fixture
def processor():
    return tiny_processor()


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "data")


def _save(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_a_batch(data, processor, config):
    side = fit_processor(processor, config)
    dataset = SegmentationDataset(read_annotations(data, "train"), processor, seed=42)
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=dataset.collate)))
    assert side == IMAGE_SIZE
    assert batch["pixel_values"].shape == (4, 3, side, side) and batch["pixel_values"].dtype == torch.float32
    assert batch["masks"].shape == (4, side, side) and batch["masks"].unique().tolist() == [0, 1]
    assert batch["places"].tolist() == [0, 1, 2, 3]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert len(batch["attention_mask"].sum(1).unique()) > 1
    logits = tiny_clipseg()(**{k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}).logits
    assert logits.shape == batch["masks"].shape


def test_image_and_mask_lie_on_each_other(tmp_path, processor, config):
    image, mask = np.zeros((60, 90, 3), np.uint8), np.zeros((60, 90), np.uint8)
    image[:30, 45:], mask[:30, 45:] = 255, 255
    row = AnnotationRow(0, _save(image, tmp_path / "i.png"), _save(mask, tmp_path / "m.png"), {"p1": ["corner"]})
    side = fit_processor(processor, config, 64)
    example = SegmentationDataset([row], processor)[0]
    assert torch.equal(example.mask[: side // 2, side // 2 :], torch.ones(side // 2, side // 2))
    assert example.mask.sum() == (side // 2) ** 2
    mean, std = processor.image_processor.image_mean[0], processor.image_processor.image_std[0]
    brightness = example.pixel_values[0] * std + mean
    assert torch.allclose(brightness.round(), example.mask)


def test_random_prompts_change_with_the_epoch_and_evaluation_prompts_do_not(data, processor):
    rows = read_annotations(data, "train")
    training, evaluation = SegmentationDataset(rows, processor, seed=42), SegmentationDataset(rows, processor)

    def prompts(dataset, epoch):
        dataset.set_epoch(epoch)
        return [dataset[place].prompt for place in range(len(dataset))]

    assert prompts(training, 0) != prompts(training, 1)
    assert prompts(training, 0) == prompts(training, 0)
    assert prompts(evaluation, 0) == prompts(evaluation, 1)
    assert all(prompt.startswith("one ") for prompt in prompts(evaluation, 0))


def test_workers_draw_the_same_prompts(data, processor):
    dataset = SegmentationDataset(read_annotations(data, "train"), processor, seed=1)
    batches = {}
    for workers in (0, 2):
        dataset.set_epoch(3)
        batches[workers] = list(DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=dataset.collate))
    for alone, shared in zip(batches[0], batches[2], strict=True):
        assert torch.equal(alone["input_ids"], shared["input_ids"])


def test_long_prompts_are_truncated_and_keep_their_end(processor):
    tokens = prompts_to_tensors(processor, ["one small red circle, located in the top left of the image", "disc"])
    assert tokens["input_ids"].shape == (2, TOKENS)
    assert tokens["input_ids"][0, -1] == processor.tokenizer.eos_token_id
    assert tokens["attention_mask"].sum(1).tolist() == [TOKENS, 6]


def test_tokens_are_capped_where_the_tokenizer_names_no_limit(processor, config):
    for named, limit in ((int(1e30), TOKENS), (10, 10)):
        processor.tokenizer.model_max_length = named
        fit_processor(processor, config)
        assert prompts_to_tensors(processor, ["x" * 200])["input_ids"].shape == (1, limit)


def test_prompts_are_padded_to_the_longest_of_them_alone(processor):
    assert prompts_to_tensors(processor, ["disc"])["input_ids"].shape == (1, 6)
    assert prompts_to_tensors(processor, ["disc", "a disc"])["attention_mask"].sum(1).tolist() == [6, 7]


@pytest.mark.parametrize("suffix, options", [(".png", {}), (".jpg", {"quality": 60}), (".bmp", {})])
def test_masks_are_thresholded_at_half(tmp_path, suffix, options):
    grey = np.zeros((32, 32), np.uint8)
    grey[8:24, 8:24] = 255
    assert np.array_equal(open_mask(_save(grey, tmp_path / f"mask{suffix}", **options)), grey > 0)


def test_half_itself(tmp_path):
    grey = np.array([[0, 127, 128, 255, 255]], np.uint8)
    assert open_mask(_save(grey, tmp_path / "mask.png")).tolist() == [[False, False, True, True, True]]


def test_an_empty_mask_is_fine(tmp_path):
    assert not open_mask(_save(np.zeros((4, 4), np.uint8), tmp_path / "mask.png")).any()


@pytest.mark.parametrize("name", ["JPEG", "MPO", "JPEG2000", "WEBP"])
def test_noise_on_an_empty_mask_is_fine_where_the_format_makes_it(tmp_path, name):
    noise = np.full((16, 16), 3, np.uint8)
    assert not open_mask(_save(noise, tmp_path / "mask", format=name)).any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_images_of_every_8_bit_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (8, 6), "white").convert(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (8, 6) and image.getpixel((3, 3)) == (255, 255, 255)


def test_a_cameras_preview_is_no_second_page(tmp_path):
    photograph, preview = Image.new("RGB", (8, 6), "white"), Image.new("RGB", (4, 3))
    photograph.save(tmp_path / "image.jpg", format="MPO", save_all=True, append_images=[preview])
    image = open_image(tmp_path / "image.jpg")
    assert image.size == (8, 6) and image.getpixel((3, 3)) == (255, 255, 255)


def test_the_layers_of_a_psd_are_no_pages(tmp_path):
    """Its frames are counted from 1, so that seeking to the first by 0 would end in an error."""
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 1, 6, 8, 8, 1)
    (tmp_path / "image.psd").write_bytes(header + bytes(3 * 4 + 2) + b"\xff" * 48)
    image = open_image(tmp_path / "image.psd")
    assert image.size == (8, 6) and image.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_as_a_camera_was_held_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    _save(pixels, tmp_path / "image.jpg", exif=exif, quality=100, subsampling=0)
    upright = (32, 16) if orientation < 5 else (16, 32)
    mask = _save(np.zeros(upright[::-1], np.uint8), tmp_path / "mask.png")
    check_pair(tmp_path / "image.jpg", mask)
    image = open_pair(tmp_path / "image.jpg", mask)[0]
    # Where the first row and the first column of a file are seen, by the standard (JEITA CP-3451).
    left, top = orientation in (1, 4, 5, 8), orientation in (1, 2, 5, 6)
    corner = (0 if left else image.width - 1, 0 if top else image.height - 1)
    assert image.size == upright and min(image.getpixel(corner)) > 200


def test_mask_to_tensor_takes_the_nearest_pixel():
    mask = np.array([[True, False], [False, True]])
    assert mask_to_tensor(mask, 4).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def _write_pages(path):
    pages = [Image.new("L", (40, 36), shade) for shade in (0, 255)]
    pages[0].save(path, format="TIFF", save_all=True, append_images=pages[1:])


IMAGE_PROBLEMS = {
    "not an image": (lambda path: path.write_text("no image"), "not an image"),
    "no bytes": (lambda path: path.write_bytes(b""), "not an image"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "truncated": (_truncate, "cannot be read"),
    "16 bits": (lambda path: _save(np.zeros((36, 40), np.uint16), path), "more than 8 bits"),
    "two pages": (_write_pages, "several pages"),
}


@pytest.mark.parametrize("spoil, problem", IMAGE_PROBLEMS.values(), ids=IMAGE_PROBLEMS)
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_damaged_file_is_named(data, processor, kind, spoil, problem):
    rows = read_annotations(data, "train")
    spoil(data / kind / "train_1.png")
    with pytest.raises(InputError, match=f"{kind}/train_1.png.*{problem}"):
        SegmentationDataset(rows, processor)[1]


@pytest.mark.parametrize("limit", [100, 1000])
def test_a_decompression_bomb_is_named(data, processor, monkeypatch, limit):
    """Above the limit Pillow only warns, above twice as much it raises."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=f"train_0.png cannot be read as an image: it has more than {limit:,} pixels"):
        SegmentationDataset(read_annotations(data, "train"), processor)


def test_a_bomb_of_a_few_bytes_is_named(tmp_path):
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(InputError, match="more than 89,478,485 pixels; crop or shrink it"):
        open_image(tmp_path / "bomb.png")


def test_damaged_files_end_in_an_input_error_and_nothing_else(tmp_path):
    """Pillow's readers meet damage with errors of many kinds."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8))
    refused = 0
    for suffix in ("png", "jpg", "tif", "bmp", "gif", "webp", "ppm"):
        picture.save(tmp_path / f"image.{suffix}")
        content = (tmp_path / f"image.{suffix}").read_bytes()
        for _ in range(60):
            spoilt = bytearray(content[: rng.integers(1, len(content) + 1)])
            for place in rng.integers(0, len(spoilt), 3):
                spoilt[place] = rng.integers(256)
            try:
                open_image(ImageBytes(f"image.{suffix}", bytes(spoilt)))
            except InputError:
                refused += 1
    assert refused > 200


def _grey_mask(*levels):
    return np.repeat(np.array([[0, 255, *levels]], np.uint8), 20, axis=0).repeat(10, axis=1)


def _palette(colours):
    image = Image.fromarray(np.arange(20).reshape(4, 5).astype(np.uint8) % 2)
    image.putpalette(sum(colours, ()))
    return image


MASKS = {
    "many greys": (Image.linear_gradient("L"), "of this mask that are not black are grey"),
    "noise": (Image.effect_noise((64, 64), 80), "of this mask that are not black are grey"),
    "three classes": (Image.fromarray(_grey_mask(128)), "or save a mask for each class"),
    "class numbers": (Image.fromarray(_grey_mask() // 255 * 2), "the brightest pixel of this mask is 2"),
    "a red palette": (_palette([(0, 0, 0), (255, 0, 0)]), "the brightest pixel of this mask is 76"),
    "transparency": (Image.new("LA", (8, 8), (255, 0)), "has transparent pixels"),
    "16 bits": (Image.new("I;16", (8, 8)), "more than 8 bits"),
    "floats": (Image.new("F", (8, 8)), "more than 8 bits"),
}


@pytest.mark.parametrize("image, problem", MASKS.values(), ids=MASKS)
def test_a_mask_that_is_not_black_and_white_is_refused(tmp_path, image, problem):
    path = tmp_path / ("mask.tif" if image.mode == "F" else "mask.png")
    image.save(path)
    with pytest.raises(InputError, match=problem):
        open_mask(path)


def test_a_mask_with_smooth_edges_is_fine(tmp_path):
    large = Image.new("L", (160, 160))
    large.paste(255, (30, 30, 90, 110))
    small = large.resize((37, 37), Image.Resampling.BILINEAR)
    assert np.array_equal(open_mask(_save(np.asarray(small), tmp_path / "mask.png")), np.asarray(small) > 127)


@pytest.mark.parametrize("dark, bright, fine", [(31, 224, True), (60, 224, False), (31, 190, False)])
def test_how_far_from_black_and_white_a_mask_may_be(tmp_path, dark, bright, fine):
    """Half of the pixels each: what counts as grey is then an area of a single grey."""
    levels = np.repeat(np.array([[dark], [bright]], np.uint8), 64, axis=1)
    path = _save(levels, tmp_path / "mask.png")
    if fine:
        assert np.array_equal(open_mask(path), levels > 127)
    else:
        with pytest.raises(InputError, match="64 of the .* pixels of this mask that are not black are grey"):
            open_mask(path)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "CMYK"])
def test_masks_of_every_8_bit_mode(tmp_path, mode):
    grey = Image.fromarray(_grey_mask())
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    (_palette([(0, 0, 0), (255, 255, 255)]) if mode == "P" else grey.convert("RGB").convert(mode)).save(path)
    assert 0 < open_mask(path).mean() < 1


def test_an_animation_is_refused_and_one_frame_is_an_image(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"still.{suffix}")
        assert open_image(tmp_path / f"still.{suffix}").size == (8, 8)
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match=f"moving.{suffix} holds several pages or frames"):
            open_image(tmp_path / f"moving.{suffix}")


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    _palette([(10, 20, 30), (200, 100, 50)]).save(tmp_path / "image.png", transparency=b"\x00\xff")
    assert open_image(tmp_path / "image.png").getpixel((1, 0)) == (200, 100, 50)


def test_the_content_of_a_file_is_read_as_the_file(data):
    path = data / "images" / "train_0.png"
    assert open_image(ImageBytes("cell 3", path.read_bytes())).tobytes() == open_image(path).tobytes()
    with pytest.raises(InputError, match="cell 3 is not an image that Pillow reads, but an empty file"):
        open_image(ImageBytes("cell 3", b""))


def test_the_user_may_name_the_prompt_or_give_one(data, processor):
    rows = read_annotations(data, "train")
    for options, prompt in (({"prompt": "p1"}, "disc"), ({"prompt": "p0"}, ""), ({"override_prompt": "it"}, "it")):
        for seed in (None, 3):
            dataset = SegmentationDataset(rows, processor, seed, **options)
            assert {dataset.prompt(place) for place in range(6)} == {dataset[0].prompt} == {prompt}
    with pytest.raises(InputError, match="train_0.png has no prompt p7; it has p1, p2, p3"):
        SegmentationDataset(rows, processor, prompt="p7")
    with pytest.raises(InputError, match="--prompt last is unknown"):
        SegmentationDataset(rows, processor, prompt="last")


def test_a_mask_of_another_size_is_named_with_its_image_before_training(data, processor):
    _save(np.zeros((30, 40), np.uint8), data / "masks" / "train_2.png")
    with pytest.raises(InputError, match="masks/train_2.png is 40x30 but its image .*images/train_2.png is 40x36"):
        SegmentationDataset(read_annotations(data, "train"), processor)
    with pytest.raises(InputError, match="masks/train_2.png is 40x30"):
        open_pair(data / "images" / "train_2.png", data / "masks" / "train_2.png")


def test_a_mask_of_zeros_and_ones_is_refused(tmp_path):
    with pytest.raises(InputError, match="mask.png.* brightest pixel of this mask is 1; masks hold 0 and 255"):
        open_mask(_save(np.eye(4, dtype=np.uint8), tmp_path / "mask.png"))


@pytest.mark.parametrize("side", [30, 4, 33])
def test_an_image_size_that_the_patches_do_not_tile_is_refused(processor, config, side):
    with pytest.raises(InputError, match=f"--image_size {side} must be a multiple of the model's patch size 8"):
        fit_processor(processor, config, side)


def test_a_processor_without_a_square_size_asks_for_one(processor, config):
    processor.image_processor.size = {"shortest_edge": 32}
    with pytest.raises(InputError, match="--image_size"):
        fit_processor(processor, config)
    processor.image_processor.do_resize = False
    assert fit_processor(processor, config, 40) == 40
    assert image_to_tensor(processor, Image.new("RGB", (9, 7))).shape == (3, 40, 40)


def test_the_processor_keeps_its_size_on_disk(data, processor, config, tmp_path):
    fit_processor(processor, config, 48)
    processor.save_pretrained(tmp_path / "processor")
    again = type(processor).from_pretrained(tmp_path / "processor")
    shutil.rmtree(tmp_path / "processor")
    assert SegmentationDataset(read_annotations(data, "val"), again)[0].pixel_values.shape == (3, 48, 48)


def test_jpeg_masks_make_clean_batches(tmp_path, processor):
    rows = read_annotations(write_dataset(tmp_path / "jpeg", suffix=".jpg"), "train")
    dataset = SegmentationDataset(rows, processor)
    masks = dataset.collate([dataset[place] for place in range(len(dataset))])["masks"]
    assert masks.unique().tolist() == [0, 1]
    assert all(0.02 < mask.mean() < 0.3 for mask in masks)
