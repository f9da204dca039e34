"""Which parts of a model a text-prompted mask depends on.

Weights beyond them get no gradient: adapters there would be dead, and DistributedDataParallel fails on them.
"""

from torch import nn

from .declaration import Architecture, Encoder, config_value
from .families import architecture_of, known_models


def layer_names(encoder: Encoder, model: nn.Module) -> list[str]:
    """
    The names of an encoder's layers, in their order.

    Args:
        encoder (`Encoder`): its declaration.
        model (`nn.Module`): the model.

    Raises:
        `ValueError`: if the model has no list of layers there.
    """
    lists = [""]
    for part in encoder.layers.split("."):
        if part == "*":
            lists = [f"{path}.{index}" for path in lists for index, _ in enumerate(_layers_at(path, encoder, model))]
        else:
            lists = [f"{path}.{part}".removeprefix(".") for path in lists]
    return [f"{path}.{index}" for path in lists for index, _ in enumerate(_layers_at(path, encoder, model))]


def _layers_at(path: str, encoder: Encoder, model: nn.Module) -> nn.ModuleList | nn.Sequential:
    module: nn.Module | None = model
    for part in path.split("."):
        module = dict(module.named_children()).get(part) if module is not None else None
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        found = "nothing" if module is None else f"a {type(module).__name__}"
        raise ValueError(
            f"the declaration says that layers are in {encoder.layers!r}, and {type(model).__name__} has {found} at "
            f"{path!r}; allowed: an nn.ModuleList or nn.Sequential of transformer layers. A trunk of convolutions "
            "(ResNet, ConvNeXt) has none."
        )
    return module


def encoder_depth(encoder: Encoder, model: nn.Module) -> int:
    """How many layers an encoder of `model` has."""
    return len(layer_names(encoder, model))


def extract_layers_of(family: Architecture, model: nn.Module) -> list[int]:
    """The vision layers whose hidden states the decoder is handed, in the order in which it is handed them."""
    if family.extract_layers is None:
        assert family.vision is not None
        return [encoder_depth(family.vision, model) - 1]
    declared = family.extract_layers
    layers = config_value(model.config, declared) if isinstance(declared, str) else declared
    return [int(layer) for layer in layers]


def reached_vision_layers(family: Architecture, model: nn.Module) -> int:
    """How many vision layers, counted from the first, reach a text-prompted mask."""
    assert family.vision is not None
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
    places = list(family.unreached)
    if family.vision is not None:
        places += layer_names(family.vision, model)[reached_vision_layers(family, model) :]
    return {
        name
        for name, _ in model.named_parameters()
        if any(name == place or name.startswith(f"{place}.") for place in places)
    }
