"""The block is the paper's, and its fresh start changes nothing and trains, in all its variations."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN

from peft_vlsm.tuners.bottleneck import FRESH_BIAS, Bottleneck, why_not

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Not zero at zero, no slope there, or parameters of their own.
NO_OUTPUT_ACTIVATIONS = {"laplace", "prelu", "relu2", "sigmoid", "sqrtsoftplus", "xielu"}


def change(block, x, linears, training=False):
    return block.change(x, *linears, block.initial_scale, training)


@pytest.mark.parametrize("init_weights", [True, "paper", False])
def test_shapes(init_weights):
    fc1, fc2 = Bottleneck().new_linears(12, 5, init_weights)
    assert (fc1.weight.shape, fc1.bias.shape) == ((5, 12), (5,))
    assert (fc2.weight.shape, fc2.bias.shape) == ((12, 5), (12,))


def test_the_formula():
    block = Bottleneck()
    fc1, fc2 = block.new_linears(6, 4, "paper")
    x = torch.randn(3, 2, 6)
    inner = F.relu(x @ fc1.weight.T + fc1.bias)
    expected = F.relu(inner @ fc2.weight.T + fc2.bias)
    torch.testing.assert_close(change(block, x, (fc1, fc2)), expected)
    assert (expected == 0).any() and (expected > 0).any()


@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize("output_activation", [True, False])
@pytest.mark.parametrize("scaling", [1.0, 0.5, 4])
def test_the_formula_of_the_variations(activation, output_activation, scaling):
    block = Bottleneck(activation, output_activation, 0.0, scaling)
    fc1, fc2 = block.new_linears(6, 4, "paper")
    x, function = torch.randn(3, 6), ACT2FN[activation]
    expected = function(x @ fc1.weight.T + fc1.bias) @ fc2.weight.T + fc2.bias
    expected = scaling * (function(expected) if output_activation else expected)
    torch.testing.assert_close(change(block, x, (fc1, fc2)), expected)


def test_dropout_acts_in_training_alone():
    block = Bottleneck(dropout=0.5)
    linears = block.new_linears(6, 64, False)
    x = torch.randn(3, 6)
    assert torch.equal(change(block, x, linears), change(Bottleneck(), x, linears))
    torch.manual_seed(0)
    first, second = (change(block, x, linears, training=True) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaling", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("activation", "output_activation"),
    [pair for pair in itertools.product(sorted(ACT2FN), (True, False)) if why_not(*pair) is None],
)
def test_a_fresh_adapter_changes_nothing_and_has_a_slope(dtype, scaling, activation, output_activation):
    block = Bottleneck(activation, output_activation, 0.0, scaling)
    fc1, fc2 = (linear.to(dtype) for linear in block.new_linears(6, 16, True))
    # With a zero as input some functions would be flat inside, too.
    found = change(block, torch.randn(5, 6, dtype=dtype) + 1, (fc1, fc2))
    assert found.abs().max() <= 1e-4
    found.sum().backward()
    assert fc2.weight.grad is not None and fc2.weight.grad.abs().sum() > 0
    assert fc2.bias.grad is not None and (fc2.bias.grad != 0).all()


def test_which_output_activations_cannot_be():
    # transformers 4.57 has fewer functions.
    refused = {name for name in ACT2FN if why_not(name, output_activation=True) is not None}
    assert refused == NO_OUTPUT_ACTIVATIONS & set(ACT2FN)
    alone = {name for name in ACT2FN if why_not(name, output_activation=False) is not None}
    assert alone == {"prelu", "xielu"} & set(ACT2FN)


def test_the_paper_bias_stays():
    for _ in range(2):
        assert torch.equal(Bottleneck().new_linears(4, 3, True)[1].bias, torch.full((4,), FRESH_BIAS))


def test_random_weights_are_visible():
    block = Bottleneck()
    assert change(block, torch.randn(20, 32), block.new_linears(32, 16, False)).mean() > 0.05
