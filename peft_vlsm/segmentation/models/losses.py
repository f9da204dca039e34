"""The paper's loss: 1.5 times Dice plus 1.0 times binary cross-entropy, on logits."""

import torch
import torch.nn.functional as F

SMOOTH = 1e-5


def dice_bce_loss(
    logits: torch.Tensor, masks: torch.Tensor, dice_weight: float = 1.5, bce_weight: float = 1.0
) -> torch.Tensor:
    """
    The weighted sum of Dice loss and binary cross-entropy, for each image by itself.

    Its mean equals monai's `DiceCELoss(sigmoid=True, lambda_dice=1.5, lambda_ce=1.0)`. Computed in float32 whatever
    the logits' type, since a sum over 352 x 352 pixels leaves float16.

    Args:
        logits (`torch.Tensor` of shape `(B, H, W)` or `(B, 1, H, W)`): before the sigmoid.
        masks (`torch.Tensor` of shape `(B, H, W)`): 0 and 1.
        dice_weight (`float`, defaults to 1.5): weight of the Dice loss.
        bce_weight (`float`, defaults to 1.0): weight of the binary cross-entropy, which is averaged over pixels.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32.
    """
    logits = logits.float().reshape(masks.shape).flatten(1)
    masks = masks.float().flatten(1)
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum(dim=1)
    dice = 1 - (2 * overlap + SMOOTH) / (probabilities.sum(dim=1) + masks.sum(dim=1) + SMOOTH)
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=1)
    return dice_weight * dice + bce_weight * bce
