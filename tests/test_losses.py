"""The loss equals monai's, in every number format."""

import pytest
import torch
from monai.losses import DiceCELoss

from peft_vlsm.segmentation.models.losses import dice_bce_loss


def _batch(masks):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 12, 10, generator=generator)
    random = (torch.rand(4, 12, 10, generator=generator) > 0.6).float()
    return logits, {"random": random, "empty": torch.zeros_like(random), "full": torch.ones_like(random)}[masks]


@pytest.mark.parametrize("masks", ["random", "empty", "full"])
@pytest.mark.parametrize("weights", [(1.5, 1.0), (0.3, 2.0)])
def test_value_and_gradient_equal_monai(masks, weights):
    logits, masks = _batch(masks)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = dice_bce_loss(ours, masks, *weights).mean()
    reference = DiceCELoss(sigmoid=True, lambda_dice=weights[0], lambda_ce=weights[1])
    expected = reference(theirs[:, None], masks[:, None])
    assert torch.allclose(loss, expected, atol=1e-6)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


def test_the_papers_weights_are_the_default():
    logits, masks = _batch("random")
    assert torch.equal(dice_bce_loss(logits, masks), dice_bce_loss(logits, masks, 1.5, 1.0))


def test_each_image_by_itself():
    logits, masks = _batch("random")
    alone = torch.cat([dice_bce_loss(logits[i : i + 1], masks[i : i + 1]) for i in range(4)])
    assert torch.allclose(dice_bce_loss(logits[:, None], masks), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, masks = torch.full((1, 352, 352), 4.0, dtype=dtype), torch.ones(1, 352, 352)
    with torch.autocast("cpu", dtype=dtype):
        loss = dice_bce_loss(logits, masks)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, dice_bce_loss(logits.float(), masks))
