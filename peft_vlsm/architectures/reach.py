"""Which parts of a model a text-prompted mask depends on.

Weights beyond them get no gradient: adapters there would be dead, and DistributedDataParallel fails on them.
"""

from torch import nn

from .declaration import Architecture, Encoder, config_value
from .families import architecture_of, known_models


def encoder_depth(encoder: Encoder, model: nn.Module) -> int:
    """How many layers an encoder of `model` has."""
    layers = model.get_submodule(encoder.layers)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"'{encoder.layers}' is a {type(layers).__name__}; allowed: an nn.ModuleList of layers.")
    return len(layers)


def extract_layers_of(family: Architecture, model: nn.Module) -> list[int]:
    """The vision layers whose hidden states the decoder is handed, in the order in which it is handed them."""
    return [int(layer) for layer in config_value(model.config, family.extract_layers)]


def reached_vision_layers(family: Architecture, model: nn.Module) -> int:
    """How many vision layers, counted from the first, reach a text-prompted mask."""
    return min(encoder_depth(family.vision, model), max(extract_layers_of(family, model)) + 1)


def unreached_parameters(model: nn.Module) -> set[str]:
    """
    The names of the parameters on which no text-prompted mask of `model` depends.

    Full fine-tuning freezes them: they would get no gradient.

    Args:
        model (`nn.Module`): a model of a known family, without adapters.

    Returns:
        `set[str]`: names as in `model.named_parameters()`.

    Raises:
        `ValueError`: if the model belongs to no known family.
    """
    family = architecture_of(model)
    if family is None:
        raise ValueError(f"model is a {type(model).__name__}; allowed: {known_models()}.")
    reached = reached_vision_layers(family, model)
    depth = encoder_depth(family.vision, model)
    places = [*family.unreached, *(f"{family.vision.layers}.{layer}" for layer in range(reached, depth))]
    return {
        name
        for name, _ in model.named_parameters()
        if any(name == place or name.startswith(f"{place}.") for place in places)
    }
