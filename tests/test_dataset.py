"""Images, masks and prompts become the tensors that the model takes; damaged files are named."""

import shutil
import struct

import numpy as np
import pytest
import torch
from builders import IMAGE_SIZE, TOKENS, tiny_clipseg, tiny_processor, write_dataset
from PIL import Image
from torch.utils.data import DataLoader

from peft_vlsm.segmentation.annotations import AnnotationRow, read_annotations
from peft_vlsm.segmentation.dataset import SegmentationDataset
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.images import check_pair, open_image, open_mask, open_pair
from peft_vlsm.segmentation.transforms import fit_processor, mask_to_tensor, prompts_to_tensors


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
    processor.tokenizer.model_max_length = int(1e30)
    fit_processor(processor, config)
    assert prompts_to_tensors(processor, ["x" * 200])["input_ids"].shape == (1, TOKENS)


@pytest.mark.parametrize("suffix, options", [(".png", {}), (".jpg", {"quality": 60}), (".bmp", {})])
def test_masks_are_thresholded_at_half(tmp_path, suffix, options):
    grey = np.zeros((32, 32), np.uint8)
    grey[8:24, 8:24] = 255
    assert np.array_equal(open_mask(_save(grey, tmp_path / f"mask{suffix}", **options)), grey > 0)


def test_half_itself(tmp_path):
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert open_mask(_save(grey, tmp_path / "mask.png")).tolist() == [[False, False, True, True]]


def test_an_empty_mask_is_fine(tmp_path):
    assert not open_mask(_save(np.zeros((4, 4), np.uint8), tmp_path / "mask.png")).any()


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


def test_an_image_lying_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    _save(np.zeros((10, 20, 3), np.uint8), tmp_path / "image.jpg", exif=exif)
    mask = _save(np.zeros((20, 10), np.uint8), tmp_path / "mask.png")
    check_pair(tmp_path / "image.jpg", mask)
    assert open_pair(tmp_path / "image.jpg", mask)[0].size == (10, 20)


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


def test_a_decompression_bomb_is_named(data, processor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="images/train_0.png cannot be read"):
        SegmentationDataset(read_annotations(data, "train"), processor)


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
    assert fit_processor(processor, config, 40) == 40


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
