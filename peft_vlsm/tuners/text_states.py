"""Taps the text encoder's hidden states for Shallow's text adapters, and lets them go when the forward ends.

A layer's state is read where the next module takes it: with reentrant gradient checkpointing the output that a hook on
the layer itself sees may be cut off from autograd, while what enters the next layer is not. The pooled token follows
the host model's own rule, so that the taps and the pooled output use the same one.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..architectures.declaration import Architecture
from ..architectures.overrides import MethodOverride
from ..architectures.placement import reader_of_state

# In CLIP checkpoints that give this id the end-of-text token is the highest id of a row (transformers PR 24773).
OLD_END_OF_TEXT_ID = 2


def end_of_text_positions(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """
    The position of the token that a CLIP text model pools.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, length)`): token ids.
        eos_token_id (`int`): the text model's `eos_token_id`.

    Returns:
        `torch.Tensor` of shape `(batch,)`: a position in each row.
    """
    ids = input_ids.to(torch.int)
    if eos_token_id == OLD_END_OF_TEXT_ID:
        return ids.argmax(dim=-1)
    return (ids == eos_token_id).int().argmax(dim=-1)


class TextStates:
    """
    The hidden states at the end-of-text token, during one run of the model's text features.

    Args:
        model (`nn.Module`): the base model.
        family (`Architecture`): its declaration.
    """

    def __init__(self, model: nn.Module, family: Architecture) -> None:
        assert family.text_model is not None and family.text_features is not None and family.text is not None
        self.text_model: Any = model.get_submodule(family.text_model)
        self.text_features, self.encoder = family.text_features, family.text
        self.positions: torch.Tensor | None = None
        self.states: dict[int, torch.Tensor] = {}
        self.taps: dict[int, RemovableHandle] = {}
        self.scope: _TextFeaturesScope | None = None

    def tap(self, model: nn.Module, layer: int) -> None:
        """Reads the state after text layer `layer` of `model` from now on."""
        if self.scope is None:
            owner, _, name = self.text_features.rpartition(".")
            self.scope = _TextFeaturesScope(model.get_submodule(owner), name, self)
        if layer not in self.taps:
            reader = model.get_submodule(reader_of_state(self.encoder, model, layer))
            self.taps[layer] = reader.register_forward_pre_hook(_Tap(self, layer))

    def state_after(self, layer: int) -> torch.Tensor:
        """
        The state after text layer `layer` at the end-of-text token.

        Returns:
            `torch.Tensor` of shape `(batch, text width)`.

        Raises:
            `RuntimeError`: outside a run of the model's text features, where there are no text states.
        """
        if layer not in self.states:
            raise RuntimeError(
                f"no text state after layer {layer}: Shallow's text adapters need `{self.text_features}`, "
                "which runs the text encoder."
            )
        state, positions = self.states[layer], self.positions
        assert positions is not None
        rows = torch.arange(positions.shape[0], device=state.device)
        return state[rows, positions.to(state.device)]

    def remove(self) -> None:
        """Takes the taps and the scope away again."""
        if self.scope is not None:
            self.scope.remove()
            self.scope = None
        for handle in self.taps.values():
            handle.remove()
        self.taps = {}


class _TextFeaturesScope(MethodOverride):
    """Opens the taps for one run of the text features and empties them afterwards, also when it raises."""

    def __init__(self, module: nn.Module, name: str, text_states: TextStates) -> None:
        super().__init__(module, name)
        self.text_states = text_states

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        input_ids = args[0] if args else kwargs["input_ids"]
        states = self.text_states
        states.positions = end_of_text_positions(
            input_ids.view(-1, input_ids.shape[-1]), states.text_model.eos_token_id
        )
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            states.positions = None
            states.states = {}


class _Tap:
    """A forward pre-hook: the tapped module's first argument is the state after `layer`."""

    def __init__(self, text_states: TextStates, layer: int) -> None:
        self.text_states = text_states
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # Read later: in transformers 4.57 this runs inside the checkpoint, which must not save a tensor more here than
        # when backward runs it again.
        if self.text_states.positions is not None:
            self.text_states.states[self.layer] = args[0]
