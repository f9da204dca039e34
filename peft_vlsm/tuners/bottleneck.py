"""The adapter block of VLSM-Adapter: `x + relu(fc2(relu(fc1(x))))` (arXiv 2405.06196, section 3), and its variations.

The block knows nothing of peft. Its two linear layers live apart, in one dictionary each, because peft keeps an
adapter's name out of saved keys only where that name stands right before `weight` or `bias`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

# float16 still holds it, so that the outer relu has a slope there; 1e-8 would round to zero.
FRESH_BIAS = 1e-6
SMALLEST_HALF = 6e-8


@dataclass(frozen=True)
class Bottleneck:
    """
    How a block computes: `x + scale * output(fc2(dropout(activation(fc1(x)))))`.

    Args:
        activation (`str`, defaults to `"relu"`): a name in transformers' `ACT2FN`.
        output_activation (`bool`, defaults to `True`): whether it stands after `fc2` too, as in the paper.
        dropout (`float`, defaults to 0.0): the share of the bottleneck's features that training sets to zero.
        scaling (`float` or `"learned"`, defaults to 1.0): what the change is multiplied by.
    """

    activation: str = "relu"
    output_activation: bool = True
    dropout: float = 0.0
    scaling: float | str = 1.0

    def new_linears(self, width: int, adapter_dim: int, init_weights: bool | str) -> tuple[nn.Linear, nn.Linear]:
        """
        Makes the two linear layers of an adapter.

        Args:
            width (`int`): size of the hidden state that is adapted.
            adapter_dim (`int`): size of the bottleneck.
            init_weights (`bool` or `str`):
                `True`: `fc2.weight` is zero and `fc2.bias` too, or 1e-6 under a relu, so that the fresh adapter
                changes nothing and still trains; `"paper"`: `nn.Linear`'s own; `False`: everything random, with a
                deviation that makes the adapter visible in the output.

        Returns:
            `tuple[nn.Linear, nn.Linear]`: `fc1` (width to adapter_dim) and `fc2` (adapter_dim to width).
        """
        fc1, fc2 = nn.Linear(width, adapter_dim), nn.Linear(adapter_dim, width)
        if init_weights is True:
            nn.init.zeros_(fc2.weight)
            nn.init.constant_(fc2.bias, self._fresh_bias())
        elif init_weights is False:
            for linear in (fc1, fc2):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                nn.init.normal_(linear.bias, std=0.1)
        return fc1, fc2

    def _fresh_bias(self) -> float:
        if not self.output_activation or value_and_slope(self.activation, 0.0)[1] != 0:
            return 0.0
        return max(FRESH_BIAS / max(1.0, self.initial_scale), SMALLEST_HALF)

    @property
    def initial_scale(self) -> float:
        """What a fresh adapter's change is multiplied by."""
        return 1.0 if isinstance(self.scaling, str) else float(self.scaling)

    def change(
        self,
        hidden_state: torch.Tensor,
        fc1: nn.Module,
        fc2: nn.Module,
        scale: torch.Tensor | float,
        training: bool,
    ) -> torch.Tensor:
        """
        What an adapter adds to a hidden state.

        Args:
            hidden_state (`torch.Tensor` of shape `(..., width)`): in the dtype of the weights, unless under autocast.
            fc1, fc2 (`nn.Module`): the two linear layers.
            scale (`torch.Tensor` or `float`): `scaling`, or the learned one.
            training (`bool`): whether dropout is on.

        Returns:
            `torch.Tensor` of shape `(..., width)`.
        """
        activate = activation_function(self.activation)
        inner = activate(fc1(hidden_state))
        if self.dropout:
            inner = F.dropout(inner, self.dropout, training)
        outer = fc2(inner)
        if self.output_activation:
            outer = activate(outer)
        return outer if isinstance(scale, float) and scale == 1.0 else outer * scale


_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu}


def activation_function(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """An activation by its name in transformers' `ACT2FN`; those without parameters are made once."""
    if name not in _FUNCTIONS:
        _FUNCTIONS[name] = ACT2FN[name]
    return _FUNCTIONS[name]


def value_and_slope(activation: str, at: float) -> tuple[float, float]:
    """The value and the derivative of an activation at a point."""
    with torch.enable_grad():
        point = torch.tensor([at], device="cpu", requires_grad=True)
        value = activation_function(activation)(point)
        (slope,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
    return value.item(), 0.0 if slope is None else slope.item()


def why_not(activation: str, output_activation: bool) -> str | None:
    """
    Why an activation cannot be an adapter's.

    Args:
        activation (`str`): a name in transformers' `ACT2FN`.
        output_activation (`bool`): whether it stands after `fc2` too.

    Returns:
        `str` or `None`: the reason; None if it can.
    """
    function = ACT2FN[activation]
    if isinstance(function, nn.Module) and (list(function.parameters()) or list(function.buffers())):
        return "has parameters of its own, which the adapter would not save"
    if not output_activation:
        return None
    value, slope = value_and_slope(activation, FRESH_BIAS)
    if abs(value) > 2 * FRESH_BIAS:
        return "is not zero at zero, so that a fresh adapter could not leave the output unchanged"
    if abs(slope) < 1e-3:
        return "has no slope at zero, so that a fresh adapter could not train"
    return None
