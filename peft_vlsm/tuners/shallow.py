"""The Shallow tuner: bottlenecks on the hidden states handed to the decoder, and on the conditional embedding."""

from typing import Any

from torch import nn

from ..architectures.declaration import Architecture, config_value
from ..architectures.placement import Placement, shallow_placement
from ..architectures.reach import extract_layers_of, layer_names
from .config import VLSMAdapterConfig
from .layer import AdapterLayer, ShallowConditional, ShallowLayer, text_slot, vision_slot
from .model import VLSMAdapterModel, config_of, family_of
from .targets import TARGETS, WRAPPED, lies_in, without_base_layer
from .text_states import TextStates
from .widths import width_of


class ShallowAdapterModel(VLSMAdapterModel):
    """
    Puts Shallow adapters into a model: bottlenecks on the hidden states handed to the decoder (VLSM-Adapter, arXiv
    2405.06196, section 3). Made by `get_peft_model(model, ShallowAdapterConfig(...))`.
    """

    prefix = ShallowLayer.prefix
    tuner_layer_cls = ShallowLayer

    def _placement(self, family: Architecture, model: nn.Module, config: Any) -> Placement:
        places = shallow_placement(family, model, config.variant, config.layers)
        decoder = family.decoder
        if decoder is not None and any(lies_in(entry, decoder) for entry in config.modules_to_save or ()):
            places[WRAPPED] = [decoder]
        return places

    def _resolved_modules_to_save(self, config: VLSMAdapterConfig, model: nn.Module) -> list[str] | None:
        """
        The decoder's adapters stand around it, so what is trained and saved of it lies inside that wrapper, also for
        an adapter without V: its saved keys must not depend on what other adapters the model has.
        """
        entries = super()._resolved_modules_to_save(config, model)
        family = family_of(config, model)
        if not entries or family is None or family.decoder is None or config.target_modules is not None:
            return entries
        name = family.decoder
        inside = f"{name}.base_layer"
        resolved = [
            inside + entry.removeprefix(name) if lies_in(entry, name) and not lies_in(entry, inside) else entry
            for entry in entries
        ]
        decoder = model.get_submodule(name)
        wrapped = decoder.base_layer if isinstance(decoder, AdapterLayer) else decoder
        for entry in entries:
            # peft takes a module right inside a tuner layer's own for a part of an adapter.
            if any(f"{name}.{part}".endswith(without_base_layer(entry)) for part, _ in wrapped.named_children()):
                raise ValueError(
                    f"modules_to_save has {entry!r}, a part of {name!r} that Shallow adapters stand around; "
                    f"allowed: {name!r} as a whole, or modules further inside."
                )
        return resolved

    def _layer_class(self, places: list[tuple[str, str]]) -> type[AdapterLayer]:
        standing_on_text = {letter for letter, _ in places} & {"L", "C"}
        return ShallowConditional if standing_on_text else ShallowLayer

    def _fill(self, layer: AdapterLayer, adapter_name: str, config: Any, letter: str, place: str) -> None:
        if letter == WRAPPED:
            return
        if letter in (TARGETS, "C"):
            width = width_of(layer.base_layer, "input" if letter == TARGETS else "output")
            layer.add_slot("", width)
            layer.update_layer(adapter_name, "", config.width_at(place, width, conditional=letter == "C"), config)
            return
        family = family_of(config, self.model)
        encoder = None if family is None else (family.vision if letter == "V" else family.text)
        assert family is not None and encoder is not None and encoder.width is not None
        encoder_layer = place.partition("@")[2]
        index = layer_names(encoder, self.model).index(encoder_layer)
        slot = vision_slot(index) if letter == "V" else text_slot(index)
        width = config_value(config_of(self.model), encoder.width)
        layer.add_slot(slot, width)
        layer.update_layer(adapter_name, slot, config.width_at(encoder_layer, width), config)
        if letter == "V":
            assert isinstance(layer, ShallowLayer)
            layer.state_axis = family.state_axis
            layer.state_slots[extract_layers_of(family, self.model).index(index)] = slot
            return
        assert isinstance(layer, ShallowConditional)
        if layer.text_states is None:
            layer.text_states = TextStates(self.model, family)
        layer.text_states.tap(self.model, index)
        layer.text_layers.setdefault(adapter_name, []).append(index)
        layer.text_residual[adapter_name] = config.text_residual
