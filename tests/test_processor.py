"""A processor of any family: read from both forms of files, saved where transformers' own classes find it."""

import json
import shutil

import numpy as np
import pytest
import torch
from builders import PROCESSOR_FILES, tiny_processor
from PIL import Image
from segmenters import write_sam3_model
from transformers import CLIPSegProcessor

from peft_vlsm.architectures import FAMILIES
from peft_vlsm.segmentation.models.processor import load_processor

CLIPSEG, SAM3 = (next(f for f in FAMILIES if f.model_type == name) for name in ("clipseg", "sam3"))


def test_clipsegs_own_processor_reads_what_is_saved_and_gives_the_same(base, tmp_path):
    processor = load_processor(str(base), CLIPSEG)
    processor.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == PROCESSOR_FILES
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    expected = tiny_processor()(text=["a red disc"], images=[image], return_tensors="pt")
    theirs = CLIPSegProcessor.from_pretrained(tmp_path, use_fast=False)(
        text=["a red disc"], images=[image], return_tensors="pt"
    )
    ours = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, expected["pixel_values"]) and torch.equal(theirs["pixel_values"], ours)
    assert torch.equal(theirs["input_ids"], expected["input_ids"])


def test_the_declaration_stands_where_files_say_nothing(tmp_path):
    write_sam3_model(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Sam3ImageProcessor"}')
    image_processor = load_processor(str(tmp_path), SAM3).image_processor
    assert dict(image_processor.size)["height"] == SAM3.image_size == 1008
    assert tuple(image_processor.image_mean) == SAM3.image_mean and tuple(image_processor.image_std) == SAM3.image_std


def test_what_files_say_of_an_image_counts_and_the_family_says_the_rest(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "processor_config.json").unlink(missing_ok=True)
    file = tmp_path / "model" / "preprocessor_config.json"
    told = {"size": {"height": 24, "width": 24}, "resample": 0, "do_normalize": False, "rescale_factor": 0.5}
    file.write_text(json.dumps({"image_processor_type": "ViTImageProcessor", **told}))
    image_processor = load_processor(str(tmp_path / "model"), CLIPSEG).image_processor
    assert dict(image_processor.size)["height"] == 24 and image_processor.resample == 0
    assert image_processor.do_normalize is False and image_processor.rescale_factor == 0.5
    assert CLIPSEG.image_mean != CLIPSEG.image_std
    assert tuple(image_processor.image_mean) == CLIPSEG.image_mean
    assert tuple(image_processor.image_std) == CLIPSEG.image_std


def test_a_batchs_padding_is_not_stored(base, tmp_path):
    processor = load_processor(str(base), CLIPSEG)
    processor.tokenizer(["disc", "a red disc"], padding=True, truncation=True)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["padding"] is None and stored["truncation"] is None


def test_a_missing_file_is_an_error(base, tmp_path):
    with pytest.raises(OSError):
        load_processor(str(tmp_path), CLIPSEG)
