"""The block is the paper's, and its fresh start changes nothing and trains."""

import pytest
import torch
from torch.nn import functional as F

from peft_vlsm.tuners.bottleneck import FRESH_BIAS, bottleneck_change, new_bottleneck

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("init_weights", [True, "paper", False])
def test_shapes(init_weights):
    fc1, fc2 = new_bottleneck(12, 5, init_weights)
    assert (fc1.weight.shape, fc1.bias.shape) == ((5, 12), (5,))
    assert (fc2.weight.shape, fc2.bias.shape) == ((12, 5), (12,))


def test_the_formula():
    fc1, fc2 = new_bottleneck(6, 4, "paper")
    x = torch.randn(3, 2, 6)
    inner = F.relu(x @ fc1.weight.T + fc1.bias)
    expected = F.relu(inner @ fc2.weight.T + fc2.bias)
    torch.testing.assert_close(bottleneck_change(x, fc1, fc2), expected)
    assert (expected == 0).any() and (expected > 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fresh_adapter_changes_nothing_and_has_a_slope(dtype):
    fc1, fc2 = (linear.to(dtype) for linear in new_bottleneck(6, 4, True))
    change = bottleneck_change(torch.randn(5, 6, dtype=dtype), fc1, fc2)
    assert 0 < change.max() <= 2 * FRESH_BIAS
    change.sum().backward()
    assert fc2.weight.grad is not None and fc2.weight.grad.abs().sum() > 0
    assert fc2.bias.grad is not None and (fc2.bias.grad != 0).all()


def test_random_weights_are_visible():
    fc1, fc2 = new_bottleneck(32, 16, False)
    assert bottleneck_change(torch.randn(20, 32), fc1, fc2).mean() > 0.05
