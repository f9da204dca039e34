"""One adapter for each sample of a batch: peft's `adapter_names`, with `"__base__"` for samples without one.

For the time of one forward every tuner layer knows the names, and adapts each adapter's rows of the batch alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

if TYPE_CHECKING:
    from .layer import AdapterLayer

BASE = "__base__"


@dataclass
class Samples:
    """
    What a tuner layer knows of the samples in its tensors.

    Args:
        adapter_names (`Sequence[str]`, *optional*): an adapter for each sample; None outside such a forward.
        batch_axis (`int`, defaults to 0): the axis of the batch.
        folded (`bool`, defaults to `False`): whether parts of an image, such as windows, follow each other in it.
    """

    adapter_names: Sequence[str] | None = None
    batch_axis: int = 0
    folded: bool = False


def rows_of_adapters(samples: Samples, hidden_state: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """
    The rows of a tensor's batch that each adapter adapts.

    Args:
        samples (`Samples`): with `adapter_names`.
        hidden_state (`torch.Tensor`): the tensor.

    Returns:
        Pairs of an adapter's name and its rows; samples of the base model are left out.

    Raises:
        `ValueError`: if the batch does not hold one row, or where samples are folded equally many, for each name.
    """
    names = samples.adapter_names
    assert names is not None
    size = hidden_state.shape[samples.batch_axis]
    parts, rest = divmod(size, len(names))
    if rest or (parts != 1 and not samples.folded):
        raise ValueError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(names)} names, and "
            f"{size} samples in an adapted tensor of shape {tuple(hidden_state.shape)}; allowed: one name for each "
            "sample."
        )
    for adapter_name in dict.fromkeys(name for name in names if name != BASE):
        own = [index for index, name in enumerate(names) if name == adapter_name]
        rows = torch.tensor(own, device=hidden_state.device)
        yield adapter_name, (rows[:, None] * parts + torch.arange(parts, device=rows.device)).flatten()


@contextmanager
def sample_adapters(
    model: nn.Module, layers: Sequence["AdapterLayer"], adapter_names: Sequence[str], known: Sequence[str]
) -> Iterator[None]:
    """
    Lets every sample of a forward go through an adapter of its own.

    Args:
        model (`nn.Module`): the model with adapters, in eval mode.
        layers (`Sequence[AdapterLayer]`): its tuner layers.
        adapter_names (`Sequence[str]`): a name for each sample.
        known (`Sequence[str]`): the names of the model's adapters.

    Raises:
        `ValueError`: in training mode, for an unknown name, or where one cannot be had for each sample.
    """
    if isinstance(adapter_names, str) or not adapter_names:
        raise ValueError(f"adapter_names is {adapter_names!r}; allowed: a list with one name for each sample.")
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    unknown = sorted(set(adapter_names) - {BASE, *known})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; allowed: {', '.join(known)} and "
            f"{BASE} for the base model."
        )
    handles = [
        module.register_forward_pre_hook(partial(_pass_names, adapter_names=list(adapter_names)), with_kwargs=True)
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    for layer in layers:
        layer.samples.adapter_names = adapter_names
    try:
        yield
    finally:
        for layer in layers:
            layer.samples.adapter_names = None
        for handle in handles:
            handle.remove()


def _pass_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """peft's wrapper of a module to save takes the names as an argument, and picks rows of its first one."""
    if not args or not isinstance(args[0], torch.Tensor):
        raise ValueError(
            "adapter_names cannot choose among modules_to_save that take a list of tensors, such as a decoder; "
            "allowed: set_adapter before the forward."
        )
    return args, {**kwargs, "adapter_names": adapter_names}
