"""The tuner layers: each wraps a module of the base model and puts a tensor of it through adapters.

A layer has one or more slots, each a tensor that is adapted; a slot holds a bottleneck for every adapter name. Dense
adapts what the module gives, Shallow what it takes, and `ShallowConditional` the conditional embedding and text
states.
"""

import inspect
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .bottleneck import Bottleneck
from .config import VLSMAdapterConfig
from .sample_adapters import Samples, rows_of_adapters
from .text_states import TextStates
from .widths import told_width

NOT_MERGEABLE = (
    "VLSM adapters cannot be merged into the base model: a bottleneck with activations is no change of its weights. "
    "Keep the adapter beside the model, or call `unload()` for the base model without it."
)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """
    Wraps a module of the base model; subclasses say which tensors go through the bottlenecks.

    Args:
        base_layer (`nn.Module`): the wrapped module.
    """

    prefix: str

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.widths: dict[str, int] = {}
        self.blocks: dict[str, Bottleneck] = {}
        self.adapter_layer_names = ()
        self._disable_adapters = False
        self._active_adapter = []
        self.merged_adapters = []
        sequence_first = isinstance(base_layer, nn.MultiheadAttention) and not base_layer.batch_first
        self.samples = Samples(batch_axis=1 if sequence_first else 0)
        self.train(base_layer.training)

    def __getattr__(self, name: str) -> Any:
        """What this layer does not have itself, the wrapped module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    @property
    def in_features(self) -> int | None:
        """Size of what the wrapped module takes, as peft's layers tell it; None where it does not tell."""
        return told_width(self.get_base_layer(), "input")

    @property
    def out_features(self) -> int | None:
        """Size of what the wrapped module gives, as peft's layers tell it; None where it does not tell."""
        return told_width(self.get_base_layer(), "output")

    def _linear_names(self, slot: str) -> tuple[str, str]:
        stem = f"{self.prefix}{slot}_" if slot else self.prefix
        return f"{stem}fc1", f"{stem}fc2"

    def _scale_name(self, slot: str) -> str:
        return f"{self.prefix}{slot}_scale" if slot else f"{self.prefix}scale"

    def _linears(self, slot: str) -> list[nn.ModuleDict]:
        return [getattr(self, name) for name in self._linear_names(slot)]

    def add_slot(self, slot: str, width: int) -> None:
        """
        Makes room for adapters of one more tensor; a slot that is there already stays.

        Args:
            slot (`str`): its name, part of the saved keys; "" for the layer's main tensor.
            width (`int`): size of the tensor's last dimension.
        """
        if slot in self.widths:
            return
        self.widths[slot] = width
        for name in self._linear_names(slot):
            self.add_module(name, nn.ModuleDict())
        self.add_module(self._scale_name(slot), nn.ParameterDict())
        self.adapter_layer_names = (*self.adapter_layer_names, *self._linear_names(slot), self._scale_name(slot))

    def update_layer(self, adapter_name: str, slot: str, adapter_dim: int, config: VLSMAdapterConfig) -> None:
        """
        Puts a new bottleneck into a slot.

        Args:
            adapter_name (`str`): the adapter that it belongs to.
            slot (`str`): the slot, made by [`~AdapterLayer.add_slot`].
            adapter_dim (`int`): size of the bottleneck.
            config (`VLSMAdapterConfig`): tells how the block computes, `init_weights` and `inference_mode`.
        """
        block = Bottleneck(config.activation, config.output_activation, config.dropout, config.scaling)
        self.blocks[adapter_name] = block
        linears = block.new_linears(self.widths[slot], adapter_dim, config.init_weights)
        for linears_of_slot, linear in zip(self._linears(slot), linears, strict=True):
            linears_of_slot[adapter_name] = linear
        if block.scaling == "learned":
            getattr(self, self._scale_name(slot))[adapter_name] = nn.Parameter(torch.ones(1))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, Any]:
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        if device is not None:
            return device, dtype
        # A module without a weight of its own, such as an MLP or a decoder: its parameters tell.
        floating = [parameter for parameter in base_layer.parameters() if parameter.is_floating_point()]
        return (floating[0].device, floating[0].dtype) if floating else (None, None)

    def has_adapter(self, adapter_name: str, slot: str = "") -> bool:
        """Whether an adapter has a bottleneck in a slot."""
        return slot in self.widths and adapter_name in self._linears(slot)[0]

    def linears_of(self, adapter_name: str, slot: str = "") -> tuple[nn.Linear, nn.Linear]:
        """The `fc1` and `fc2` of an adapter in a slot."""
        fc1, fc2 = (linears[adapter_name] for linears in self._linears(slot))
        assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
        return fc1, fc2

    def change(self, hidden_state: torch.Tensor, adapter_name: str, slot: str = "") -> torch.Tensor:
        """
        What one adapter adds to a tensor.

        Args:
            hidden_state (`torch.Tensor` of shape `(..., width)`): the tensor.
            adapter_name (`str`): the adapter.
            slot (`str`, defaults to ""): which tensor of this layer it is.

        Returns:
            `torch.Tensor` of the same shape and dtype.

        Raises:
            `ValueError`: if the tensor has another width.
        """
        if hidden_state.shape[-1] != self.widths[slot]:
            raise ValueError(
                f"an adapter of width {self.widths[slot]} on {type(self.get_base_layer()).__name__} got a tensor of "
                f"shape {tuple(hidden_state.shape)}; allowed: {self.widths[slot]} features in the last dimension."
            )
        fc1, fc2 = self.linears_of(adapter_name, slot)
        block, learned = self.blocks[adapter_name], getattr(self, self._scale_name(slot))
        scale = learned[adapter_name] if adapter_name in learned else block.initial_scale
        cast = self._cast_input_dtype(hidden_state, fc1.weight.dtype)
        return block.change(cast, fc1, fc2, scale, self.training).to(hidden_state.dtype)

    def adapters_of(self, hidden_state: torch.Tensor) -> list[tuple[str, torch.Tensor | None]]:
        """The adapters that act on a tensor, in their order, each with its rows of the batch (None for all)."""
        if self.disable_adapters:
            return []
        if self.samples.adapter_names is None:
            return [(adapter_name, None) for adapter_name in self.active_adapters]
        return list(rows_of_adapters(self.samples, hidden_state))

    def add_change(
        self,
        hidden_state: torch.Tensor,
        adapter_name: str,
        slot: str = "",
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A tensor with what one adapter adds to it, or to these rows of its batch alone."""
        if rows is None:
            return hidden_state + self.change(hidden_state, adapter_name, slot)
        axis = self.samples.batch_axis
        change = self.change(hidden_state.index_select(axis, rows), adapter_name, slot)
        return hidden_state.index_add(axis, rows, change)

    def adapt(self, hidden_state: torch.Tensor, slot: str = "") -> torch.Tensor:
        """Puts a tensor through the active adapters of a slot, in their order; shape and dtype stay."""
        for adapter_name, rows in self.adapters_of(hidden_state):
            if self.has_adapter(adapter_name, slot):
                hidden_state = self.add_change(hidden_state, adapter_name, slot, rows)
        return hidden_state

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.blocks.pop(adapter_name, None)

    def release(self) -> None:
        """Takes away what this layer put into other modules; called when it leaves the model."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The wrapped module, which peft puts back in this layer's place."""
        if merge:
            raise NotImplementedError(NOT_MERGEABLE)
        if isinstance(self.base_layer, ModulesToSaveWrapper):
            return self.base_layer.unload_and_optionally_merge_module(False, False, None)
        return self.base_layer


class DenseLayer(AdapterLayer):
    """Adapts what a module gives: a tensor, or the first tensor of a tuple."""

    prefix = "vlsm_dense_adapter_"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return self.adapt(output)
        if type(output) is tuple and output and isinstance(output[0], torch.Tensor):
            return (self.adapt(output[0]), *output[1:])
        raise TypeError(
            f"a Dense adapter on {type(self.get_base_layer()).__name__} got a {type(output).__name__}; allowed: "
            "modules that return a tensor or a tuple that begins with one."
        )


class ShallowLayer(AdapterLayer):
    """Adapts what a module takes: its first argument, a tensor or the list of hidden states handed to a decoder."""

    prefix = "vlsm_shallow_adapter_"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        # Which slot adapts which element of a list of hidden states, and on which axis their features are.
        self.state_slots: dict[int, str] = {}
        self.state_axis = -1
        self.input_name = next(iter(inspect.signature(base_layer.forward).parameters))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            return self.base_layer(self._adapt_input(args[0]), *args[1:], **kwargs)
        return self.base_layer(**{**kwargs, self.input_name: self._adapt_input(kwargs[self.input_name])})

    def _adapt_input(self, states: Any) -> Any:
        if isinstance(states, torch.Tensor):
            return self._adapt_state(states, self.state_slots.get(0, ""))
        if "" in self.widths and not self.disable_adapters:
            raise TypeError(
                f"a Shallow adapter on {type(self.get_base_layer()).__name__} got a {type(states).__name__}; allowed: "
                "modules whose first argument is a tensor."
            )
        adapted = [
            self._adapt_state(state, self.state_slots[index]) if index in self.state_slots else state
            for index, state in enumerate(states)
        ]
        return type(states)(adapted)

    def _adapt_state(self, state: torch.Tensor, slot: str) -> torch.Tensor:
        if self.state_axis == -1:
            # The very tensor where nothing is adapted: attention asks whether query and key are the same one.
            return self.adapt(state, slot)
        return self.adapt(state.movedim(self.state_axis, -1), slot).movedim(-1, self.state_axis)


class ShallowConditional(ShallowLayer):
    """
    Wraps the module that gives the conditional embedding: C adapts its output, then L adds the adapted text states.

    Args:
        base_layer (`nn.Module`): the wrapped module.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        # Where the tapped states are found during a forward; there from the first adapter with L on.
        self.text_states: TextStates | None = None
        # For each adapter with L its tapped layers, and whether their states are added as they are, too.
        self.text_layers: dict[str, list[int]] = {}
        self.text_residual: dict[str, bool] = {}

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        embedding = self.base_layer(*args, **kwargs)
        for adapter_name, rows in self.adapters_of(embedding):
            if self.has_adapter(adapter_name):
                embedding = self.add_change(embedding, adapter_name, rows=rows)
            for layer in self.text_layers.get(adapter_name, ()):
                assert self.text_states is not None
                state = self.text_states.state_after(layer)
                if rows is not None:
                    state = state.index_select(0, rows)
                added = self.change(state, adapter_name, text_slot(layer))
                added = state + added if self.text_residual[adapter_name] else added
                embedding = embedding + added if rows is None else embedding.index_add(0, rows, added)
        return embedding

    def release(self) -> None:
        if self.text_states is not None:
            self.text_states.remove()
            self.text_states = None

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.text_layers.pop(adapter_name, None)
        self.text_residual.pop(adapter_name, None)


def text_slot(layer: int) -> str:
    """Slot of the text state after encoder layer `layer`."""
    return f"text_{layer}"


def vision_slot(layer: int) -> str:
    """Slot of the vision state after encoder layer `layer`."""
    return f"vision_{layer}"
