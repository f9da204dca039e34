"""CLIPSeg's forward hides its encoders from autograd; the lift undoes that and nothing else."""

import copy
import inspect
import pickle

import pytest
import torch
from models import clipseg_inputs, tiny_clipseg
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPSegForImageSegmentation

from peft_vlsm import DenseAdapterConfig, enable_encoder_gradients
from peft_vlsm.architectures import unreached_parameters

LORA = LoraConfig(r=2, target_modules=["q_proj", "fc1"], exclude_modules=r".*(decoder|vision_model.*\.[45]\.).*")


def train_step(model, **inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_without_the_lift_the_encoders_do_not_train():
    model = tiny_clipseg()
    assert not any(name.startswith("clip.") for name in train_step(model, **clipseg_inputs(model)))


def test_full_fine_tuning_trains_everything_that_reaches_the_mask():
    model = tiny_clipseg()
    enable_encoder_gradients(model)
    trained = train_step(model, **clipseg_inputs(model))
    assert trained == {name for name, _ in model.named_parameters()} - unreached_parameters(model)
    assert "clip.vision_model.encoder.layers.4.mlp.fc1.weight" in unreached_parameters(model)


@pytest.mark.parametrize("lift_first", [True, False])
def test_lora_trains_the_encoders(lift_first):
    model = tiny_clipseg()
    if lift_first:
        enable_encoder_gradients(model)
    peft_model = get_peft_model(model, copy.deepcopy(LORA))
    if not lift_first:
        enable_encoder_gradients(peft_model)
    expected = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert len(expected) > 20
    assert train_step(peft_model, **clipseg_inputs(model)) == expected


def test_the_handle_undoes_it():
    model = tiny_clipseg()
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    handle = enable_encoder_gradients(model)
    handle.remove()
    handle.remove()
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    with enable_encoder_gradients(model):
        assert "clip.text_projection.weight" in train_step(model, **clipseg_inputs(model))
    assert "clip.text_projection.weight" not in train_step(model, **clipseg_inputs(model))


def test_two_users_share_one_lift():
    model = tiny_clipseg()
    first = enable_encoder_gradients(model)
    second = enable_encoder_gradients(model)
    first.remove()
    assert "clip.text_projection.weight" in train_step(model, **clipseg_inputs(model))
    second.remove()
    assert "forward" not in model.__dict__


def test_unloading_adapters_keeps_the_users_own_lift():
    model = tiny_clipseg()
    handle = enable_encoder_gradients(model)
    get_peft_model(model, DenseAdapterConfig(adapter_dim=4)).unload()
    model.requires_grad_(True)
    assert "clip.text_projection.weight" in train_step(model, **clipseg_inputs(model))
    handle.remove()
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_lift_of_its_own(duplicate):
    model = tiny_clipseg()
    handle = enable_encoder_gradients(model)
    other = duplicate(model)
    handle.remove()
    inputs = clipseg_inputs(model)
    assert "clip.text_projection.weight" in train_step(other, **inputs)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "clip.text_projection.weight" not in train_step(model, **inputs)


def pooled(output):
    """transformers 4.57 gives the tensor itself."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def test_a_direct_call_obeys_its_caller():
    model = tiny_clipseg()
    enable_encoder_gradients(model)
    inputs = clipseg_inputs(model)
    arguments = {"batch_size": 2, "input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    assert model.get_conditional_embeddings(**arguments).requires_grad
    assert pooled(model.clip.get_text_features(inputs["input_ids"])).requires_grad
    with torch.no_grad():
        assert not model.get_conditional_embeddings(**arguments).requires_grad
        assert not pooled(model.clip.get_image_features(inputs["pixel_values"])).requires_grad
        assert not model(**inputs).loss.requires_grad
    with torch.inference_mode():
        assert model.get_conditional_embeddings(**arguments).is_inference()
    assert torch.is_grad_enabled()


def test_a_forward_that_raises_leaves_nothing_behind():
    model = tiny_clipseg()
    enable_encoder_gradients(model)
    inputs = clipseg_inputs(model)
    for broken in ({"input_ids": inputs["input_ids"][:1]}, {"pixel_values": inputs["pixel_values"][:, :2]}):
        with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
            model(**{**inputs, **broken})
        assert torch.is_grad_enabled()
        assert pooled(model.clip.get_text_features(inputs["input_ids"])).requires_grad
    with torch.no_grad():
        assert not model(**inputs).loss.requires_grad


def test_the_signature_stays():
    model = tiny_clipseg()
    enable_encoder_gradients(model)
    expected = inspect.signature(CLIPSegForImageSegmentation.forward).parameters
    assert list(inspect.signature(model.forward).parameters) == list(expected)[1:]


def test_a_subclass_and_a_model_inside_another_are_found():
    class MyCLIPSeg(CLIPSegForImageSegmentation):
        pass

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_clipseg()
            self.inner.__class__ = MyCLIPSeg

        def forward(self, **inputs):
            return self.inner(**inputs)

    model = Outer()
    enable_encoder_gradients(model)
    assert "inner.clip.text_projection.weight" in train_step(model, **clipseg_inputs(model.inner))


def test_a_model_of_no_family_is_an_error():
    with pytest.raises(ValueError, match="model is a Linear.*allowed: CLIPSegForImageSegmentation"):
        enable_encoder_gradients(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model is a Linear.*allowed: CLIPSegForImageSegmentation"):
        unreached_parameters(nn.Linear(2, 2))
