"""Averages adapters of one shape into a new one (a model soup, arXiv 2203.05482; adapter-hub's `average_adapter`)."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .layer import AdapterLayer

if TYPE_CHECKING:
    from .model import VLSMAdapterModel


# Adapters that differ in these compute differently from the same parameters.
SAME_FIELDS = ("activation", "output_activation", "scaling", "text_residual")


def add_average(
    tuner: "VLSMAdapterModel", adapters: Sequence[str], weights: Sequence[float] | None, adapter_name: str
) -> None:
    """
    Adds an adapter whose parameters are the weighted average of those of other adapters.

    Args:
        tuner (`VLSMAdapterModel`): the model with adapters.
        adapters (`Sequence[str]`): names of adapters that stand in the same places with the same widths.
        weights (`Sequence[float]`, *optional*): a weight for each, divided by their sum; None weighs all alike.
        adapter_name (`str`): the name of the new adapter.

    Raises:
        `ValueError`: for unknown names, weights that give no average, or adapters of different shapes.
    """
    shares = _shares(adapters, weights)
    configs: dict[str, Any] = tuner.peft_config
    for name in adapters:
        if name not in configs:
            raise ValueError(f"adapters has {name!r}; allowed: {', '.join(configs)}.")
    if adapter_name in configs:
        raise ValueError(f"adapter_name is {adapter_name!r}, which is there already; allowed: a new name.")
        for field in SAME_FIELDS:
            own, first = getattr(configs[name], field, None), getattr(configs[adapters[0]], field, None)
            if own != first:
                raise ValueError(
                    f"adapters has {name!r} with {field} {own!r}, where {adapters[0]!r} has {first!r}; allowed: "
                    "adapters that compute alike."
                )
    states = [_state_of(tuner, name) for name in adapters]
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    for name, shape in zip(adapters, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"adapters has {name!r}, which differs from {adapters[0]!r} in its places or widths; allowed: "
                "adapters of one shape."
            )
    configs[adapter_name] = copy.copy(configs[adapters[0]])
    tuner.inject_adapter(tuner.model, adapter_name)
    scales = torch.tensor(shares)
    with torch.no_grad():
        for key, value in _state_of(tuner, adapter_name).items():
            each = torch.stack([state[key].float() for state in states])
            value.copy_(torch.einsum("a,a...->...", scales.to(each.device), each))
    tuner.set_requires_grad(adapter_name, requires_grad=False)


def _state_of(tuner: "VLSMAdapterModel", adapter_name: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter and of its modules to save, under names without the adapter's."""
    state = {}
    for name, module in tuner.model.named_modules():
        parts: list[tuple[str, nn.Module]] = []
        if isinstance(module, AdapterLayer):
            parts = [(part, getattr(module, part)) for part in module.adapter_layer_names]
        elif isinstance(module, ModulesToSaveWrapper):
            parts = [("modules_to_save", module.modules_to_save)]
        for part, holder in parts:
            for key, value in holder.state_dict().items():
                owner, _, rest = key.partition(".")
                if owner == adapter_name:
                    state[f"{name}.{part}.{rest}"] = value
    return state


def _shares(adapters: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if isinstance(adapters, str) or not adapters:
        raise ValueError(f"adapters is {adapters!r}; allowed: a list of adapter names.")
    given = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    total = sum(given)
    if len(given) != len(adapters) or not math.isfinite(total) or total == 0:
        raise ValueError(
            f"weights is {weights!r}; allowed: a finite number for each of the {len(adapters)} adapters, with a sum "
            "that is not zero."
        )
    return [weight / total for weight in given]
