"""Keeps reentrant gradient checkpointing from cutting off an encoder whose weights are all frozen.

That kind gives gradients only where a tensor that enters the layer has one. transformers sees to it for models whose
main input is text, peft for models that were checkpointed before; here it holds for every declared encoder.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_layers import GradientCheckpointingLayer

from .declaration import Architecture
from .reach import layer_names


class _RequireGradient:
    """A forward hook on the module whose output enters the first layer."""

    def __init__(self, first_layer: GradientCheckpointingLayer) -> None:
        self.first_layer = first_layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        layer = self.first_layer
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_(True)


def require_input_gradients(model: nn.Module, family: Architecture | None) -> list[RemovableHandle]:
    """
    Makes what enters a checkpointed encoder require a gradient.

    Args:
        model (`nn.Module`): the model.
        family (`Architecture`, *optional*): its declaration.

    Returns:
        `list[RemovableHandle]`: their `remove` undoes it.
    """
    handles = []
    for encoder in () if family is None else (family.vision, family.text):
        if encoder is None or encoder.inputs is None:
            continue
        first_layer = model.get_submodule(layer_names(encoder, model)[0])
        if isinstance(first_layer, GradientCheckpointingLayer):
            entrance = model.get_submodule(encoder.inputs)
            handles.append(entrance.register_forward_hook(_RequireGradient(first_layer)))
    return handles
