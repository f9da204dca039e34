"""An override calls through to the method that it replaced, and goes without a trace, in any order."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from peft_vlsm.architectures.overrides import MethodOverride


class AddsOne(MethodOverride):
    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs) + 1


def fresh():
    module = nn.Linear(2, 2)
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    return module


X = torch.ones(1, 2)


def value(module):
    return module(X)[0, 0].item()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_overrides_stack_and_go_in_any_order(order):
    module = fresh()
    attributes = set(module.__dict__)
    overrides = [AddsOne(module, "forward") for _ in range(3)]
    for left, index in zip((2, 1, 0), order, strict=True):
        overrides[index].remove()
        assert value(module) == 2 + left
    assert set(module.__dict__) == attributes
    overrides[0].remove()


def test_what_stood_there_before_comes_back():
    module = fresh()
    module.forward = lambda x: x * 10
    override = AddsOne(module, "forward")
    assert value(module) == 11
    override.remove()
    assert value(module) == 10


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_calls_its_own_module(duplicate):
    module = fresh()
    AddsOne(module, "forward")
    other = duplicate(module)
    nn.init.zeros_(module.weight)
    assert (value(module), value(other)) == (1, 3)


def test_the_base_class_says_what_is_missing():
    module = fresh()
    MethodOverride(module, "forward")
    with pytest.raises(NotImplementedError, match="MethodOverride must say what a call of forward does"):
        module(X)
