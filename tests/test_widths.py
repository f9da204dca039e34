"""The width of what a module takes or gives, for every kind of module that can be adapted."""

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_vlsm.tuners.widths import width_of

MLP = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7))
KNOWN = [
    (nn.Linear(3, 5), 3, 5),
    (Conv1D(5, 3), 3, 5),
    (nn.LayerNorm(6), 6, 6),
    (nn.RMSNorm(6), 6, 6),
    (nn.MultiheadAttention(8, 2), 8, 8),
    (MLP, 4, 7),
]
UNKNOWN = [
    (nn.Conv2d(3, 4, 1), "output"),
    (nn.Embedding(10, 4), "input"),
    (nn.ReLU(), "input"),
    (nn.ModuleList([nn.Linear(2, 2)]), "output"),
]


@pytest.mark.parametrize(("module", "taken", "given"), KNOWN, ids=[type(row[0]).__name__ for row in KNOWN])
def test_known_widths(module, taken, given):
    assert (width_of(module, "input"), width_of(module, "output")) == (taken, given)


def test_an_embedding_gives_its_vectors():
    assert width_of(nn.Embedding(10, 4), "output") == 4


@pytest.mark.parametrize(("module", "side"), UNKNOWN, ids=[type(row[0]).__name__ for row in UNKNOWN])
def test_unknown_widths_are_an_error_that_names_the_module(module, side):
    with pytest.raises(ValueError, match=rf"{type(module).__name__}.*allowed: linear layers"):
        width_of(module, side)
