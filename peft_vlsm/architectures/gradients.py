"""Lifts the `torch.no_grad` that hides a model's encoders from autograd.

`CLIPSegForImageSegmentation.forward` runs both encoders under `torch.no_grad`: no weight inside them trains, neither
an adapter's nor LoRA's nor the encoder's own, and nothing says so. Here the outer methods note the caller's grad mode
and the hidden ones run in it, so a caller's own `no_grad` and `inference_mode` keep their effect.
"""

from types import TracebackType
from typing import Any

import torch
from torch import nn

from .declaration import Architecture
from .families import hosts_of, known_models
from .overrides import MethodOverride


class _Lift:
    """What the overrides of one model share: the caller's grad mode, and how many users hold the lift."""

    def __init__(self) -> None:
        self.grad_mode: bool | None = None
        self.users = 0
        self.overrides: list[MethodOverride] = []


class _NotesGradMode(MethodOverride):
    """An outer method: notes the grad mode that holds when it is called."""

    def __init__(self, module: nn.Module, name: str, lift: _Lift) -> None:
        super().__init__(module, name)
        self.lift = lift

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self.lift.grad_mode
        self.lift.grad_mode = torch.is_grad_enabled()
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            self.lift.grad_mode = before


class _RunsInGradMode(MethodOverride):
    """A hidden method: runs in the noted grad mode, or in its caller's when called directly."""

    def __init__(self, module: nn.Module, name: str, lift: _Lift) -> None:
        super().__init__(module, name)
        self.lift = lift

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.lift.grad_mode is None:
            return self.__wrapped__(*args, **kwargs)
        with torch.set_grad_enabled(self.lift.grad_mode):
            return self.__wrapped__(*args, **kwargs)


class EncoderGradients:
    """
    The handle that [`enable_encoder_gradients`] returns. Works as a context manager too.

    The lift stays while any handle on the same model is held, and is undone by the last [`~EncoderGradients.remove`].
    """

    def __init__(self, lifts: list[_Lift]) -> None:
        self._lifts = lifts

    def remove(self) -> None:
        """Undoes the lift; a second call does nothing."""
        for lift in self._lifts:
            lift.users -= 1
            if lift.users == 0:
                for override in reversed(lift.overrides):
                    override.remove()
        self._lifts = []

    def __enter__(self) -> "EncoderGradients":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def enable_encoder_gradients(model: nn.Module) -> EncoderGradients:
    """
    Lets gradients flow into encoders that a model's own forward hides under `torch.no_grad`.

    After it, peft's LoRA and full fine-tuning train CLIPSeg's encoders. Models with Dense or Shallow adapters of
    `peft_vlsm` have it already. Families that hide nothing are left as they are.

    Args:
        model (`nn.Module`):
            a model of a known family, or a model that contains one, for example a `PeftModel`.

    Returns:
        [`EncoderGradients`]: a handle; `handle.remove()` undoes the lift and leaves the model as it was.

    Raises:
        `ValueError`: if no module of `model` belongs to a known family.

    Example:

    ```py
    >>> from peft import LoraConfig, get_peft_model
    >>> from peft_vlsm import enable_encoder_gradients

    >>> model = get_peft_model(clipseg, LoraConfig(target_modules=["q_proj", "v_proj"]))
    >>> handle = enable_encoder_gradients(model)
    ```
    """
    if not hosts_of(model):
        raise ValueError(
            f"model is a {type(model).__name__}, which contains no model of a known family; allowed: {known_models()}."
        )
    return lift_hosts(model)


def lift_hosts(model: nn.Module, declared: Architecture | None = None) -> EncoderGradients:
    """Lifts each known family's model inside `model`, and `model` itself by `declared`; there may be none."""
    hosts = [(host, family) for host, family in hosts_of(model) if declared is None or host is not model]
    if declared is not None:
        hosts.append((model, declared))
    lifts = []
    for host, family in hosts:
        if family.hidden_methods:
            lift = _lift_of(host, family)
            lift.users += 1
            lifts.append(lift)
    return EncoderGradients(lifts)


def _lift_of(host: nn.Module, family: Architecture) -> _Lift:
    """The lift that `host` already has, or a new one."""
    owner, _, name = family.hidden_methods[0].rpartition(".")
    present = host.get_submodule(owner).__dict__.get(name)
    if isinstance(present, _RunsInGradMode):
        return present.lift
    lift = _Lift()
    for kind, paths in ((_NotesGradMode, family.outer_methods), (_RunsInGradMode, family.hidden_methods)):
        for path in paths:
            owner, _, name = path.rpartition(".")
            lift.overrides.append(kind(host.get_submodule(owner), name, lift))
    return lift
