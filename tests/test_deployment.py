"""Adapters stand in the way of no deployment: torch.compile, torch.export and ONNX take the adapted model.

Compiling asks for one whole graph, so a break that an adapter causes is an error; the results are those of the model
as it is. CLIPSeg is the hard case, since overrides of its methods lift its `torch.no_grad`; SAM3 is the largest
forward.
"""

import functools

import onnxruntime
import pytest
import torch
from models import CONFIGS, FAMILIES
from peft import get_peft_model
from torch import nn

BY_NAME = {family.name: family for family in FAMILIES}
# SAM3 reads the size of its image out of a tensor. torch.export cannot tell whether fused attention's mask has that
# size, with adapters or without; the plain attention does not ask.
ATTENTION = {"clipseg": None, "sam3": "eager"}
VARIANT = {
    (name, tuner): max(BY_NAME[name].variants[tuner], key=len) for name in ATTENTION for tuner in ("dense", "shallow")
}
adapted = pytest.mark.parametrize(("name", "tuner"), list(VARIANT), ids=[f"{name}-{tuner}" for name, tuner in VARIANT])


def adapt(name, tuner):
    family = BY_NAME[name]
    config = CONFIGS[tuner](variant=VARIANT[name, tuner], adapter_dim=6, init_weights=False)
    model = get_peft_model(family.build(attention=ATTENTION[name]), config)
    inputs = family.inputs(model)
    inputs.pop("labels", None)
    return family, model, inputs


def whole_graph(function):
    """A compiled function that refuses graph breaks; its graph runs as it is, so that no C++ compiler is needed."""
    return torch.compile(function, backend="eager", fullgraph=True)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    # Without it SAM3's forward, with adapters or without, breaks where it reads the size out of a tensor.
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        yield
    torch._dynamo.reset()


class Whole(nn.Module):
    """A model that gives one tensor, all that counts of its output."""

    def __init__(self, family, model):
        super().__init__()
        self.family, self.model = family, model

    def forward(self, **inputs):
        return self.family.run(self.model, inputs)


@functools.cache
def exported(name, tuner):
    """The exported model, its inputs, and what the model itself gives with adapters and without."""
    family, model, inputs = adapt(name, tuner)
    whole = Whole(family, model).eval()
    with torch.no_grad():
        expected = whole(**inputs)
        with model.disable_adapter():
            base = whole(**inputs)
        return torch.export.export(whole, (), inputs, strict=False), inputs, expected, base


def gradients(model):
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


@adapted
def test_a_training_step_compiles_to_one_graph_with_the_same_gradients(name, tuner):
    family, model, inputs = adapt(name, tuner)
    model.train()
    # Before it is compiled: transformers installs hooks in the first forward, which no graph can hold.
    loss = family.loss(model, inputs)
    loss.backward()
    expected = gradients(model)
    compiled = whole_graph(family.loss)(model, inputs)
    compiled.backward()
    found = gradients(model)
    torch.testing.assert_close(compiled, loss, atol=1e-6, rtol=1e-5)
    assert found and all(gradient is not None and gradient.any() for gradient in found.values())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_compiled_clipseg_follows_the_grad_mode_and_a_disabled_adapter():
    family, model, inputs = adapt("clipseg", "dense")
    compiled = whole_graph(family.run)
    with torch.no_grad():
        expected = family.run(model, inputs)
        found = compiled(model, inputs)
        with model.disable_adapter():
            base = family.run(model, inputs)
            torch.testing.assert_close(compiled(model, inputs), base, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, base, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not found.requires_grad
    assert compiled(model, inputs).requires_grad


@adapted
def test_an_exported_model_gives_the_same_output(name, tuner):
    program, inputs, expected, base = exported(name, tuner)
    assert not torch.allclose(expected, base, atol=1e-3)
    torch.testing.assert_close(program.module()(**inputs), expected, atol=1e-5, rtol=0)


# Its conversion of SAM3 is slow, and both tuners' blocks are the same operators.
@pytest.mark.parametrize(("name", "tuner"), [("clipseg", "dense"), ("clipseg", "shallow"), ("sam3", "dense")])
# torch 2.13's own ONNX exporter asks its pytree by the old name.
@pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated, use `isinstance\\(treespec, TreeSpec\\) and "
    "treespec.is_leaf\\(\\)` instead.:FutureWarning"
)
def test_onnxruntime_gives_the_same_output(name, tuner):
    program, inputs, expected, base = exported(name, tuner)
    onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx_program.model_proto.SerializeToString())
    assert [node.name for node in session.get_inputs()] == list(inputs)
    (found,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    assert not torch.allclose(expected, base, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
