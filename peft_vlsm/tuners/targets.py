"""Which modules a configuration names: peft's own rules, and layer indices that also work where peft ignores them."""

import re
from types import SimpleNamespace

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import nn

from .config import VLSMAdapterConfig

# Under these keys of `resolved_modules` stand the places that target_modules gave, and modules that are wrapped
# without an adapter of their own.
TARGETS = "targets"
WRAPPED = "wrapped"
RECORD_KEYS = ("V", "L", "C", TARGETS, WRAPPED)


def without_base_layer(name: str) -> str:
    """The name of a module, or of a weight, in the model without adapters."""
    return name.replace(".base_layer", "")


def wrapped_module(place: str) -> str:
    """The module that is wrapped at a place `MODULE` or `MODULE@LAYER`."""
    return place.partition("@")[0]


def wrapped_modules(config: VLSMAdapterConfig) -> dict[str, list[tuple[str, str]]]:
    """
    The modules that an adapter wraps.

    Args:
        config (`VLSMAdapterConfig`): a configuration whose `resolved_modules` are filled in.

    Returns:
        `dict[str, list[tuple[str, str]]]`: for each wrapped module its letters and places.
    """
    wrapped: dict[str, list[tuple[str, str]]] = {}
    for letter, places in (config.resolved_modules or {}).items():
        for place in places:
            wrapped.setdefault(wrapped_module(place), []).append((letter, place))
    return wrapped


def lies_in(name: str, entry: str) -> bool:
    """Whether a module is, or lies inside, the one that an entry of `modules_to_save` names, in full or by its end."""
    return re.match(rf"(?:|.*\.){re.escape(entry)}(?:$|\..*)", name) is not None


def matched_targets(config: VLSMAdapterConfig, model: nn.Module) -> list[str]:
    """
    The modules of a model that `target_modules` choose.

    Args:
        config (`VLSMAdapterConfig`): a configuration with `target_modules`; `"all-linear"` is widened in place.
        model (`nn.Module`): the model, with or without adapters.

    Returns:
        `list[str]`: their names, in the model's order.

    Raises:
        `ValueError`:
            if one of them lies inside another, inside a module that an adapter wraps already, or inside an
            `nn.MultiheadAttention`.
    """
    _maybe_include_all_linear_layers(config, model)
    matched: list[str] = []
    wrappers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, _ in model.named_modules():
        outer = next((wrapper for wrapper in [*wrappers, *matched] if name.startswith(f"{wrapper}.")), None)
        if outer is None:
            if name and is_target(config, name):
                matched.append(name)
                _refuse_inside_attention(name, model)
            continue
        if outer in wrappers and not name.startswith(f"{outer}.base_layer."):
            # The adapters' own parts, and the wrapped module under its second name.
            continue
        plain = without_base_layer(name)
        if is_target(config, plain):
            raise ValueError(
                f"target_modules is {config.target_modules!r}, which matches {plain!r} inside the adapted {outer!r}; "
                "allowed: one of both."
            )
    return matched


def _refuse_inside_attention(name: str, model: nn.Module) -> None:
    parent = name.rpartition(".")[0]
    if parent and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        raise ValueError(
            f"target_modules matches {name!r}, whose weight nn.MultiheadAttention reads without calling it: an "
            f"adapter there would never train; allowed: {parent!r} itself, or exclude_modules that name it."
        )


def is_excluded(config: VLSMAdapterConfig, name: str) -> bool:
    """Whether `exclude_modules` names a module: a regular expression, a full name or the end of one."""
    excluded = config.exclude_modules
    if not excluded:
        return False
    if isinstance(excluded, str):
        return re.fullmatch(excluded, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in excluded)


def is_target(config: VLSMAdapterConfig, name: str) -> bool | _ExcludedModule:
    """
    Whether `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` choose a module.

    peft ignores layer indices where `target_modules` is a regular expression, and does not see an index at the end of
    a name; here both work. As in peft, a module that is named in full is chosen whatever its index.

    Args:
        config (`VLSMAdapterConfig`): a configuration with `target_modules`.
        name (`str`): a module's name.

    Returns:
        `bool` or peft's mark of an excluded module, which is false.
    """
    names = SimpleNamespace(
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
    )
    found = check_target_module_exists(names, name)  # pyright: ignore[reportArgumentType]
    if isinstance(found, _ExcludedModule):
        return found
    if not found or config.layers_to_transform is None:
        return bool(found)
    if not isinstance(config.target_modules, str) and name in (config.target_modules or ()):
        return True
    index = _layer_index(name, config.layers_pattern)
    indices = config.layers_to_transform
    return index is not None and (index == indices if isinstance(indices, int) else index in indices)


def _layer_index(name: str, layers_pattern: str | list[str] | None) -> int | None:
    """The index of the layer that a module is in: the first number in its name, or the first after a pattern."""
    patterns = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern or [r"[^.]+"]
    for pattern in patterns:
        match = re.match(rf"(?:|.*?\.)(?:{pattern})\.(?P<index>\d+)(?:\.|$)", name)
        if match:
            return int(match["index"])
    return None
