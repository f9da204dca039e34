"""One way to run every family: logits at the images' size, presence where it is told, and the loss of both."""

import pytest
import torch
from builders import tiny_clipseg, tiny_processor
from segmenters import sam3_model
from torch import nn

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.losses import dice_bce_loss
from peft_vlsm.segmentation.models.segmenter import SegmenterOutput, family_of, run_segmenter, segmentation_loss

MODELS = {"clipseg": (tiny_clipseg, 32, False), "sam3": (sam3_model, 64, True)}


@pytest.mark.parametrize("build, side, presence", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_logits_have_the_images_size(build, side, presence, rows):
    tokens = tiny_processor().tokenizer(["disc"] * rows, padding=True, return_tensors="pt")
    output = run_segmenter(build(), {"pixel_values": torch.randn(rows, 3, side, side), **tokens})
    assert output.logits.shape == (rows, side, side)
    assert (output.presence is not None) == presence
    assert not presence or output.presence.shape == (rows,)


@torch.no_grad()
def test_coarse_logits_are_stretched_without_steps():
    """SAM3's masks are smaller than its images; training and prediction stretch them alike."""
    model, tokens = sam3_model(), tiny_processor().tokenizer(["disc"], return_tensors="pt")
    batch = {"pixel_values": torch.randn(1, 3, 64, 64), **tokens}
    coarse = model(**batch).semantic_seg
    assert coarse.shape[-1] < 64
    expected = nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(run_segmenter(model, batch).logits, expected)


def test_the_loss_of_presence_asks_whether_the_mask_is_empty():
    masks = torch.zeros(2, 4, 4)
    masks[0, 1] = 1
    logits = torch.randn(2, 4, 4)
    alone = segmentation_loss(SegmenterOutput(logits, None), masks)
    torch.testing.assert_close(alone, dice_bce_loss(logits, masks))
    right = segmentation_loss(SegmenterOutput(logits, torch.tensor([20.0, -20.0])), masks)
    wrong = segmentation_loss(SegmenterOutput(logits, torch.tensor([-20.0, 20.0])), masks)
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(wrong, alone + 20, atol=1e-4, rtol=0)


def test_the_family_is_found_inside_wrappers():
    model = tiny_clipseg()
    assert family_of(nn.Sequential(nn.Identity(), nn.Sequential(model))) is family_of(model)
    with pytest.raises(InputError, match="a Linear gives no text-prompted masks"):
        family_of(nn.Linear(2, 2))


@torch.no_grad()
def test_how_far_prompts_are_padded_changes_nothing():
    """SAM3's own processor pads to all of its tokens, ours to the longest prompt of the batch."""
    model, pixel_values = sam3_model(), torch.randn(2, 3, 64, 64)
    outputs = []
    for padding in ("longest", "max_length"):
        tokens = tiny_processor().tokenizer(["disc", "a red disc"], padding=padding, return_tensors="pt")
        outputs.append(run_segmenter(model, {"pixel_values": pixel_values, **tokens}))
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[0].presence, outputs[1].presence, atol=1e-4, rtol=1e-4)
