"""The adapter block of VLSM-Adapter: `x + relu(fc2(relu(fc1(x))))` (arXiv 2405.06196, section 3).

The block knows nothing of peft. Its two linear layers live apart, in one dictionary each, because peft keeps an
adapter's name out of saved keys only where that name stands right before `weight` or `bias`.
"""

import torch
from torch import nn
from torch.nn import functional as F

# float16 still holds it, so that the outer relu has a slope there; 1e-8 would round to zero.
FRESH_BIAS = 1e-6


def new_bottleneck(width: int, adapter_dim: int, init_weights: bool | str) -> tuple[nn.Linear, nn.Linear]:
    """
    Makes the two linear layers of an adapter.

    Args:
        width (`int`): size of the hidden state that is adapted.
        adapter_dim (`int`): size of the bottleneck.
        init_weights (`bool` or `str`):
            `True`: `fc2.weight` is zero and `fc2.bias` is 1e-6, so that the fresh adapter changes nothing and still
            trains; `"paper"`: `nn.Linear`'s own; `False`: everything random, with a deviation that makes the adapter
            visible in the output.

    Returns:
        `tuple[nn.Linear, nn.Linear]`: `fc1` (width to adapter_dim) and `fc2` (adapter_dim to width).
    """
    fc1, fc2 = nn.Linear(width, adapter_dim), nn.Linear(adapter_dim, width)
    if init_weights is True:
        nn.init.zeros_(fc2.weight)
        nn.init.constant_(fc2.bias, FRESH_BIAS)
    elif init_weights is False:
        for linear in (fc1, fc2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.normal_(linear.bias, std=0.1)
    return fc1, fc2


def bottleneck_change(hidden_state: torch.Tensor, fc1: nn.Module, fc2: nn.Module) -> torch.Tensor:
    """
    What an adapter adds to a hidden state.

    Args:
        hidden_state (`torch.Tensor` of shape `(..., width)`): in the dtype of the weights, unless under autocast.
        fc1, fc2 (`nn.Module`): the two linear layers.

    Returns:
        `torch.Tensor` of shape `(..., width)`: `relu(fc2(relu(fc1(hidden_state))))`.
    """
    return F.relu(fc2(F.relu(fc1(hidden_state))))
