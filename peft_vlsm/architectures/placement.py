"""From variant and layers to the places of one model where adapters stand.

A place is written as the module that is wrapped, for Shallow's hidden states followed by `@` and the encoder layer
after which the state is taken: `decoder@clip.vision_model.encoder.layers.3`. These names go into
`adapter_config.json`, so that a declaration that changes later never moves an old adapter.
"""

from collections.abc import Sequence

from torch import nn

from .declaration import Architecture, Encoder, config_value
from .reach import encoder_depth, extract_layers_of, layer_names, reached_vision_layers

Placement = dict[str, list[str]]
PARTS = {"V": "vision encoder", "L": "text encoder", "C": "module that gives the conditional embedding"}


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
        `ValueError`: for a letter that the family does not have, or a layer that does not exist or cannot reach a
            text-prompted mask.
    """
    _check_letters(family, variant)
    places: Placement = {}
    # Where the decoder is handed the last state alone, every layer is meant.
    paper_depth = None if family.extract_layers is None else max(extract_layers_of(family, model))
    if "V" in variant and family.vision is not None:
        reached = reached_vision_layers(family, model)
        chosen = _chosen_layers(layers, "vision", reached, paper_depth, "reach a text-prompted mask")
        places["V"] = _dense_modules(family.vision, model, chosen)
    if "L" in variant and family.text is not None:
        depth = encoder_depth(family.text, model)
        chosen = _chosen_layers(layers, "text", depth, paper_depth, "exist")
        places["L"] = _dense_modules(family.text, model, chosen)
    if "C" in variant and family.conditional is not None:
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
        `ValueError`: for a letter that the family does not have, a layer that is no extract layer, a text encoder
            that is too shallow or of another width.
    """
    _check_letters(family, variant)
    _check_shallow_letters(family, variant)
    places: Placement = {}
    if set(variant) & {"V", "L"}:
        extract_layers = extract_layers_of(family, model)
        chosen = list(extract_layers if isinstance(layers, str) else layers)
        unknown = [layer for layer in chosen if layer not in extract_layers]
        if unknown:
            raise ValueError(f"layers has {unknown[0]}; allowed for Shallow: some of extract_layers {extract_layers}.")
        if "V" in variant and family.vision is not None:
            names = layer_names(family.vision, model)
            places["V"] = [f"{family.decoder}@{names[layer]}" for layer in chosen]
        if "L" in variant and family.text is not None:
            _check_text_states(family, family.text, model, chosen)
            names = layer_names(family.text, model)
            places["L"] = [f"{family.conditional}@{names[layer]}" for layer in chosen]
    if "C" in variant and family.conditional is not None:
        places["C"] = [family.conditional]
    return places


def reader_of_state(encoder: Encoder, model: nn.Module, layer: int) -> str:
    """The module whose input is the hidden state after `layer`: the next layer, or what follows the last."""
    names = layer_names(encoder, model)
    if layer + 1 < len(names):
        return names[layer + 1]
    assert encoder.after is not None
    return encoder.after


def _check_letters(family: Architecture, variant: str) -> None:
    declared = {"V": family.vision, "L": family.text, "C": family.conditional}
    there = [letter for letter, part in declared.items() if part is not None]
    for letter in variant:
        if letter not in there:
            reason = family.reasons.get(letter, f"its declaration names no {PARTS[letter]}")
            raise ValueError(
                f"variant has {letter!r}, which {family.name} cannot have: {reason}; allowed: {', '.join(there)}."
            )


def _check_shallow_letters(family: Architecture, variant: str) -> None:
    declared = {
        "V": family.decoder is not None and family.vision is not None and family.vision.width is not None,
        "L": family.text_features is not None and family.decoder is not None,
        "C": family.conditional is not None,
    }
    there = [letter for letter, part in declared.items() if part]
    for letter in variant:
        if letter not in there:
            reason = family.reasons.get(
                f"shallow {letter}", "its declaration does not say where the states are handed"
            )
            allowed = f"{', '.join(there)}, or Dense adapters" if there else "Dense adapters"
            raise ValueError(
                f"variant has {letter!r}, which Shallow adapters cannot have on {family.name}: {reason}; allowed: "
                f"{allowed}."
            )


def _check_text_states(family: Architecture, text: Encoder, model: nn.Module, layers: Sequence[int]) -> None:
    depth = encoder_depth(text, model)
    if max(layers) >= depth:
        raise ValueError(
            f"layers has {max(layers)}, but the text encoder that L adapts has {depth} layers; allowed: layers "
            f"below {depth}, or a variant without L."
        )
    assert text.width is not None and family.conditional_width is not None
    width = config_value(model.config, text.width)
    projected = config_value(model.config, family.conditional_width)
    if width != projected:
        raise ValueError(
            f"variant has L, which adds text states of size {width} to a conditional embedding of size "
            f"{projected}; allowed: models where both are equal, or a variant without L."
        )


def _chosen_layers(
    layers: str | Sequence[int], encoder: str, available: int, paper_depth: int | None, condition: str
) -> list[int]:
    if layers == "all" or (layers == "paper" and paper_depth is None):
        return list(range(available))
    if isinstance(layers, str):
        assert paper_depth is not None
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


def _dense_modules(encoder: Encoder, model: nn.Module, layers: Sequence[int]) -> list[str]:
    names = layer_names(encoder, model)
    return [f"{names[layer]}.{module}" for layer in layers for module in encoder.dense]
