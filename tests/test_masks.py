"""Mask logits of each family that gives masks, one for each pair of image and prompt."""

import pytest
import torch
from models import FAMILIES

from peft_vlsm.architectures import architecture_of
from peft_vlsm.architectures.masks import mask_logits_of

WITH_MASKS = [family for family in FAMILIES if family.name in ("clipseg", "sam3", "groupvit")]


@pytest.mark.parametrize("family", WITH_MASKS, ids=lambda family: family.name)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_mask_for_each_pair(family, batch):
    model = family.build()
    declared = architecture_of(model)
    inputs = family.inputs(model, batch=batch)
    inputs.pop("labels", None)
    with torch.no_grad():
        masks = mask_logits_of(declared, model(**inputs, **family.forward), batch)
        alone = [
            mask_logits_of(declared, model(**{k: v[i : i + 1] for k, v in inputs.items()}, **family.forward), 1)[0]
            for i in range(batch)
        ]
    assert masks.dim() == 3 and len(masks) == batch
    torch.testing.assert_close(masks, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_the_declared_families_with_masks():
    with_masks = [family.name for family in FAMILIES if architecture_of(family.build()).masks is not None]
    assert with_masks == [family.name for family in WITH_MASKS]


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("clip", {}, "CLIPModel gives no text-prompted masks"),
        ("groupvit", {"segmentation_logits": None}, "has no 'segmentation_logits'; was it asked for"),
        (
            "sam3",
            {"semantic_seg": torch.zeros(2, 3, 4, 4)},
            r"has shape \(2, 3, 4, 4\); allowed: a mask for each of the 2",
        ),
        ("clipseg", {"logits": torch.zeros(4, 4)}, r"has shape \(4, 4\)"),
    ],
)
def test_outputs_without_a_mask_for_each_pair(name, output, message):
    family = next(family for family in FAMILIES if family.name == name)
    with pytest.raises(ValueError, match=message):
        mask_logits_of(architecture_of(family.build()), output, 2)
