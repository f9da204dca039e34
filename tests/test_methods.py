"""What each method leaves trainable in each family, and that the loss reaches all of it."""

import pytest
import torch
from builders import tiny_clipseg, tiny_processor
from models import FAMILIES
from segmenters import sam3_model

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss
from peft_vlsm.segmentation.training.methods import (
    ADAPTERS,
    Method,
    freeze_what_the_loss_misses,
    make_trainable,
    resolve,
)

MODELS = {"clipseg": tiny_clipseg, "sam3": sam3_model}
# What the names of trainable weights have in common.
TRAINS = {
    "dense": "vlsm_dense_adapter_",
    "shallow": "vlsm_shallow_adapter_",
    "lora": "lora_",
    "ia3": "ia3_l",
    "decoder": {"clipseg": "decoder.", "sam3": "mask_decoder."},
    "full": "",
}


def loss_of(model, side):
    tokens = tiny_processor().tokenizer(["disc", "a red disc"], padding=True, return_tensors="pt")
    batch = {"pixel_values": torch.randn(2, 3, side, side), "masks": torch.ones(2, side, side), **tokens}
    return lambda: segmentation_loss(run_segmenter(model, batch), batch["masks"]).mean()


def prepared(name, method):
    model = make_trainable(MODELS[name](), resolve(method))
    loss = loss_of(model, {"clipseg": 32, "sam3": 64}[name])
    return model, loss, freeze_what_the_loss_misses(model, loss)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", TRAINS)
def test_all_that_trains_gets_a_gradient(name, method):
    variant = {"dense": "VLC", "shallow": "VC", "lora": "VL", "ia3": "VL"}.get(method)
    model, loss, missed = prepared(name, Method(method, variant=variant))
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    part = TRAINS[method] if isinstance(TRAINS[method], str) else TRAINS[method][name]
    assert trainable and all(part in weight for weight in trainable)
    assert method not in ADAPTERS or missed == []
    loss().backward()
    assert [name for name, weight in trainable.items() if weight.grad is None] == []
    if method == "full":
        encoders = [name for name in trainable if "vision" in name and ".layers.0." in name]
        assert encoders and all(trainable[name].grad.abs().max() > 0 for name in encoders if name.endswith("weight"))


@pytest.mark.parametrize("method", ["dense", "full"])
def test_the_models_own_dropout_is_off(method):
    """SAM3's default is 0.1: what a row trains would depend on the rows beside it in its process."""
    model = sam3_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    torch.manual_seed(0)
    loss = loss_of(model.train(), 64)
    assert loss() != loss()
    # The adapted model is this one, changed in place.
    make_trainable(model, resolve(Method(method, variant="V" if method == "dense" else None))).train()
    assert loss() == loss()


def test_weights_that_the_loss_misses_are_frozen_and_told():
    model, _, missed = prepared("sam3", Method("decoder"))
    assert missed and all(name.startswith("mask_decoder.") for name in missed)
    assert not any(dict(model.named_parameters())[name].requires_grad for name in missed)


def test_an_adapter_that_the_loss_misses_is_an_error():
    model = make_trainable(tiny_clipseg(), resolve(Method("dense", variant="L")))
    reached = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    with pytest.raises(InputError, match="weights would train nothing, such as .*text_model"):
        freeze_what_the_loss_misses(model, reached.square().sum)


RESOLVED = {
    "dense": (Method("dense"), ("VL", 64)),
    "in order": (Method("dense", variant="CLV"), ("VLC", 64)),
    "shallow": (Method("shallow", variant="V", adapter_dim=8), ("V", 8)),
    "lora": (Method("lora"), ("VL", 16)),
    "ia3": (Method("ia3", variant="L"), ("L", None)),
    "decoder": (Method("decoder"), (None, None)),
}


@pytest.mark.parametrize("method, expected", RESOLVED.values(), ids=RESOLVED)
def test_settings_that_were_not_given(method, expected):
    assert (resolve(method).variant, resolve(method).adapter_dim) == expected


REFUSED = {
    "no letter": ("clipseg", Method("dense", variant="X"), "variant is 'X'"),
    "no C of peft's": ("clipseg", Method("lora", variant="VLC"), "variant is 'VLC'"),
    "no width": ("clipseg", Method("shallow", adapter_dim=-1), "adapter_dim is -1"),
    "shallow L of sam3": ("sam3", Method("shallow", variant="VL"), "sequence of all projected tokens"),
}


@pytest.mark.parametrize("name, method, problem", REFUSED.values(), ids=REFUSED)
def test_what_a_family_cannot_have_is_refused(name, method, problem):
    with pytest.raises(InputError, match=problem):
        make_trainable(MODELS[name](), resolve(method))


def test_a_family_without_a_head():
    groupvit = next(family for family in FAMILIES if family.name == "groupvit").build()
    with pytest.raises(InputError, match="GroupViTModel has no head of its own"):
        make_trainable(groupvit, Method("decoder"))
