"""From variant and layers to the places of one model where adapters stand.

A place is written as the module that is wrapped, for Shallow's hidden states followed by `@` and the encoder layer
after which the state is taken: `decoder@clip.vision_model.encoder.layers.3`. These names go into
`adapter_config.json`, so that a declaration that changes later never moves an old adapter.
"""

from collections.abc import Sequence

from torch import nn

from .declaration import Architecture, Encoder, config_value
from .reach import encoder_depth, extract_layers_of, reached_vision_layers

Placement = dict[str, list[str]]


def dense_placement(family: Architecture, model: nn.Module, variant: str, layers: str | Sequence[int]) -> Placement:
    """
    Where Dense adapters stand: after self-attention and after the MLP of each chosen encoder layer (paper, section 3).

    Args:
        family (`Architecture`): the model's declaration.
        model (`nn.Module`): the model.
        variant (`str`): letters out of V, L and C.
        layers (`str` or `Sequence[int]`): `"paper"`, `"all"`, or indices of encoder layers.

    Returns:
        `dict[str, list[str]]`: for each letter the names of the modules whose output is adapted.

    Raises:
        `ValueError`: for a layer that does not exist or cannot reach a text-prompted mask.
    """
    places: Placement = {}
    paper_depth = max(extract_layers_of(family, model))
    if "V" in variant:
        reached = reached_vision_layers(family, model)
        chosen = _chosen_layers(layers, "vision", reached, paper_depth, "reach a text-prompted mask")
        places["V"] = _dense_modules(family.vision, chosen)
    if "L" in variant:
        depth = encoder_depth(family.text, model)
        chosen = _chosen_layers(layers, "text", depth, paper_depth, "exist")
        places["L"] = _dense_modules(family.text, chosen)
    if "C" in variant:
        places["C"] = [family.conditional]
    return places


def shallow_placement(family: Architecture, model: nn.Module, variant: str, layers: str | Sequence[int]) -> Placement:
    """
    Where Shallow adapters stand: on the hidden states handed to the decoder (paper, section 3).

    Args:
        family (`Architecture`): the model's declaration.
        model (`nn.Module`): the model.
        variant (`str`): letters out of V, L and C.
        layers (`str` or `Sequence[int]`): `"paper"` or `"all"` for every extract layer, or some of them.

    Returns:
        `dict[str, list[str]]`:
            for each letter the places, `WRAPPED@LAYER` for V and L, the conditional module for C.

    Raises:
        `ValueError`: for a layer that is no extract layer, a text encoder that is too shallow or of another width.
    """
    extract_layers = extract_layers_of(family, model)
    chosen = list(extract_layers if isinstance(layers, str) else layers)
    unknown = [layer for layer in chosen if layer not in extract_layers]
    if unknown:
        raise ValueError(f"layers has {unknown[0]}; allowed for Shallow: some of extract_layers {extract_layers}.")
    places: Placement = {}
    if "V" in variant:
        places["V"] = [f"{family.decoder}@{family.vision.layers}.{layer}" for layer in chosen]
    if "L" in variant:
        depth = encoder_depth(family.text, model)
        if max(chosen) >= depth:
            raise ValueError(
                f"layers has {max(chosen)}, but the text encoder that L adapts has {depth} layers; allowed: layers "
                f"below {depth}, or a variant without L."
            )
        width, projected = (
            config_value(model.config, family.text.width),
            config_value(model.config, family.conditional_width),
        )
        if width != projected:
            raise ValueError(
                f"variant has L, which adds text states of size {width} to a conditional embedding of size "
                f"{projected}; allowed: models where both are equal, or a variant without L."
            )
        places["L"] = [f"{family.conditional}@{family.text.layers}.{layer}" for layer in chosen]
    if "C" in variant:
        places["C"] = [family.conditional]
    return places


def reader_of_state(encoder: Encoder, model: nn.Module, layer: int) -> str:
    """The module whose input is the hidden state after `layer`: the next layer, or what follows the last."""
    return f"{encoder.layers}.{layer + 1}" if layer + 1 < encoder_depth(encoder, model) else encoder.after


def _chosen_layers(
    layers: str | Sequence[int], encoder: str, available: int, paper_depth: int, condition: str
) -> list[int]:
    if layers == "all":
        return list(range(available))
    if isinstance(layers, str):
        chosen = list(range(min(available, paper_depth)))
        if not chosen:
            raise ValueError(
                f"layers is 'paper', which is no layer where max(extract_layers) is {paper_depth}; allowed: 'all', or "
                "a list of indices."
            )
        return chosen
    wrong = [layer for layer in layers if layer >= available]
    if wrong:
        raise ValueError(
            f"layers has {wrong[0]}, where no adapter of the {encoder} encoder can stand; allowed: 0 to "
            f"{available - 1}, the {encoder} layers that {condition}."
        )
    return list(layers)


def _dense_modules(encoder: Encoder, layers: Sequence[int]) -> list[str]:
    return [f"{encoder.layers}.{layer}.{module}" for layer in layers for module in encoder.dense]
