"""The two tuners: they put Dense and Shallow adapters into a model, through peft's own machinery."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from torch import nn

from ..architectures.declaration import Architecture, config_value
from ..architectures.families import architecture_of, known_models
from ..architectures.gradients import EncoderGradients, lift_hosts
from ..architectures.placement import Placement, dense_placement, shallow_placement
from ..architectures.reach import extract_layers_of
from .config import VLSMAdapterConfig
from .layer import (
    NOT_MERGEABLE,
    AdapterLayer,
    DenseLayer,
    ShallowConditional,
    ShallowLayer,
    text_slot,
    vision_slot,
)
from .targets import (
    RECORD_KEYS,
    TARGETS,
    WRAPPED,
    is_excluded,
    is_target,
    lies_in,
    matched_targets,
    without_base_layer,
    wrapped_module,
    wrapped_modules,
)
from .text_states import TextStates
from .widths import width_of


class VLSMAdapterModel(BaseTuner):
    """
    What both tuners share: where an adapter goes is settled before anything is changed, and recorded in its config.

    Args:
        model (`nn.Module`): the base model.
        peft_config (`VLSMAdapterConfig` or `dict`): the adapter's configuration.
        adapter_name (`str`): its name.
        low_cpu_mem_usage (`bool`, defaults to `False`): make the weights on the meta device.
        state_dict (`dict`, *optional*): as in peft.
    """

    target_module_mapping: dict[str, list[str]] = {}
    encoder_gradients: EncoderGradients | None

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.encoder_gradients = None

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Settles where the adapter goes, then lets peft put it there; see [`~peft.tuners.tuners_utils.BaseTuner`]."""
        # The caller's own config stays as it is: the record of places belongs to this model alone.
        config: Any = copy.copy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        config.modules_to_save = self._resolved_modules_to_save(config, model)
        config.resolved_modules = self._resolved_places(config, model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if self.encoder_gradients is None:
            self.encoder_gradients = lift_hosts(model)

    def _resolved_places(self, config: VLSMAdapterConfig, model: nn.Module) -> Placement | None:
        if config.resolved_modules is not None:
            unknown = sorted(set(config.resolved_modules) - set(RECORD_KEYS))
            if unknown:
                raise ValueError(
                    f"resolved_modules has the key {unknown[0]!r}; allowed: {', '.join(RECORD_KEYS)}. The adapter may "
                    "be of a newer peft_vlsm."
                )
            # adapter_config.json sorts its keys; the order of an optimizer's parameters must not depend on that.
            places = {key: config.resolved_modules[key] for key in RECORD_KEYS if key in config.resolved_modules}
        elif config.target_modules is not None:
            names = matched_targets(config, model)
            # Where nothing matches, peft's own error says why.
            places = {TARGETS: names} if names else None
        else:
            places = self._family_places(config, model)
        if places is not None:
            self._check_places(places, config, model)
        return places

    def _family_places(self, config: VLSMAdapterConfig, model: nn.Module) -> Placement:
        family = architecture_of(model)
        if family is None:
            raise ValueError(
                f"target_modules is None, and {type(model).__name__} belongs to no family that peft_vlsm knows; "
                f"allowed: models of {known_models()}, or any other model with target_modules."
            )
        places = {
            letter: [place for place in entries if not is_excluded(config, wrapped_module(place))]
            for letter, entries in self._placement(family, model, config).items()
        }
        if not any(places.values()):
            raise ValueError(
                f"exclude_modules is {config.exclude_modules!r}, which leaves no place for an adapter; allowed: fewer "
                "exclusions."
            )
        return places

    def _placement(self, family: Architecture, model: nn.Module, config: Any) -> Placement:
        raise NotImplementedError(f"{type(self).__name__} must say where a family's adapters stand.")

    def _check_places(self, places: Placement, config: VLSMAdapterConfig, model: nn.Module) -> None:
        names = {name for name, _ in model.named_modules()}
        for place in (place for entries in places.values() for place in entries):
            for name in place.split("@"):
                if name not in names:
                    raise ValueError(
                        f"resolved_modules has {name!r}, which {type(model).__name__} does not have: the adapter was "
                        "made for another model; allowed: its own base model."
                    )
            for entry in config.modules_to_save or ():
                if lies_in(wrapped_module(place), entry):
                    raise ValueError(
                        f"modules_to_save has {entry!r}, which contains {wrapped_module(place)!r} where an adapter "
                        "stands; allowed: modules without adapters, or adapters elsewhere."
                    )

    def _resolved_modules_to_save(self, config: VLSMAdapterConfig, model: nn.Module) -> list[str] | None:
        """`modules_to_save` as this model names them; each must be there, since peft passes over unknown names."""
        names = [without_base_layer(name) for name, _ in model.named_modules()]
        for entry in config.modules_to_save or ():
            # With a task type peft adds names of its own, of which a model has one.
            if config.task_type is None and not any(name.endswith(without_base_layer(entry)) for name in names):
                raise ValueError(
                    f"modules_to_save has {entry!r}, which {type(model).__name__} does not have; allowed: names of "
                    "its modules."
                )
        return config.modules_to_save

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        if is_excluded(peft_config, key):
            return _ExcludedModule()
        if peft_config.resolved_modules is None:
            return is_target(peft_config, key)
        return key in wrapped_modules(peft_config)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        places = wrapped_modules(peft_config).get(current_key, [(TARGETS, current_key)])
        layer_cls = self._layer_class(places)
        if isinstance(target, AdapterLayer):
            if type(target) is not layer_cls:
                raise ValueError(
                    f"an adapter of another kind stands on {current_key!r} already; allowed: target_modules for both "
                    "adapters, or for none."
                )
            layer = target
        else:
            layer = layer_cls(target)
            self._replace_module(parent, target_name, layer, target)
        for letter, place in places:
            self._fill(layer, adapter_name, peft_config, letter, place)

    def _layer_class(self, places: list[tuple[str, str]]) -> type[AdapterLayer]:
        raise NotImplementedError(f"{type(self).__name__} must say which layer stands on a place.")

    def _fill(self, layer: AdapterLayer, adapter_name: str, config: Any, letter: str, place: str) -> None:
        raise NotImplementedError(f"{type(self).__name__} must say which adapter stands on a place.")

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own looks for a weight on both, which a wrapped attention block or decoder does not have.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if not autocast_adapter_dtype:
            return
        # peft's own would also cast a module to save inside a wrapped decoder, away from its input's dtype.
        for layer in self._layers().values():
            for name in layer.adapter_layer_names:
                linears = getattr(layer, name)
                if adapter_name in linears and linears[adapter_name].weight.dtype in (torch.float16, torch.bfloat16):
                    linears[adapter_name].float()

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"adapter_names is {kwargs['adapter_names']!r}, one adapter for each sample, which VLSM adapters do "
                "not offer; allowed: None, with set_adapter before the forward."
            )
        yield

    def _layers(self) -> dict[str, AdapterLayer]:
        return {name: module for name, module in self.model.named_modules() if isinstance(module, AdapterLayer)}

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        layers = [] if merge else list(self._layers().values())
        model = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        self._release(layers)
        return model

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter; where no other adapter needs a wrapper the base's own module is put back."""
        super().delete_adapter(adapter_name)
        configs: dict[str, Any] = self.peft_config
        needed = {name for config in configs.values() for name in wrapped_modules(config)}
        for name, layer in self._layers().items():
            if name not in needed:
                parent, _, child_name = name.rpartition(".")
                base = layer.unload_and_optionally_merge_module(False, False, None)
                self._replace_module(self.model.get_submodule(parent), child_name, base, layer)
                layer.release()
        if not self.peft_config:
            self._release([])

    def _release(self, layers: list[AdapterLayer]) -> None:
        for layer in layers:
            layer.release()
        if self.encoder_gradients is not None:
            self.encoder_gradients.remove()
            self.encoder_gradients = None


class DenseAdapterModel(VLSMAdapterModel):
    """
    Puts Dense adapters into a model: bottlenecks on the output of self-attention and of the MLP of each encoder layer
    (VLSM-Adapter, arXiv 2405.06196, section 3). Made by `get_peft_model(model, DenseAdapterConfig(...))`.
    """

    prefix = DenseLayer.prefix
    tuner_layer_cls = DenseLayer

    def _placement(self, family: Architecture, model: nn.Module, config: Any) -> Placement:
        return dense_placement(family, model, config.variant, config.layers)

    def _layer_class(self, places: list[tuple[str, str]]) -> type[AdapterLayer]:
        return DenseLayer

    def _fill(self, layer: AdapterLayer, adapter_name: str, config: Any, letter: str, place: str) -> None:
        layer.add_slot("", width_of(layer.base_layer, "output"))
        layer.update_layer(adapter_name, "", config.cond_adapter_dim if letter == "C" else config.adapter_dim, config)


class ShallowAdapterModel(VLSMAdapterModel):
    """
    Puts Shallow adapters into a model: bottlenecks on the hidden states handed to the decoder (VLSM-Adapter, arXiv
    2405.06196, section 3). Made by `get_peft_model(model, ShallowAdapterConfig(...))`.
    """

    prefix = ShallowLayer.prefix
    tuner_layer_cls = ShallowLayer

    def _placement(self, family: Architecture, model: nn.Module, config: Any) -> Placement:
        places = shallow_placement(family, model, config.variant, config.layers)
        if any(lies_in(entry, family.decoder) for entry in config.modules_to_save or ()):
            places[WRAPPED] = [family.decoder]
        return places

    def _resolved_modules_to_save(self, config: VLSMAdapterConfig, model: nn.Module) -> list[str] | None:
        """
        The decoder's adapters stand around it, so what is trained and saved of it lies inside that wrapper, also for
        an adapter without V: its saved keys must not depend on what other adapters the model has.
        """
        entries = super()._resolved_modules_to_save(config, model)
        family = architecture_of(model)
        if not entries or family is None or config.target_modules is not None:
            return entries
        inside = f"{family.decoder}.base_layer"
        resolved = [
            inside + entry.removeprefix(family.decoder)
            if lies_in(entry, family.decoder) and not lies_in(entry, inside)
            else entry
            for entry in entries
        ]
        decoder = model.get_submodule(family.decoder)
        parts = [
            name for name, _ in (decoder.base_layer if isinstance(decoder, AdapterLayer) else decoder).named_children()
        ]
        for entry in entries:
            # peft takes a module right inside a tuner layer's own for a part of an adapter.
            if any(f"{family.decoder}.{part}".endswith(without_base_layer(entry)) for part in parts):
                raise ValueError(
                    f"modules_to_save has {entry!r}, a part of {family.decoder!r} that Shallow adapters stand around; "
                    f"allowed: {family.decoder!r} as a whole, or modules further inside."
                )
        return resolved

    def _layer_class(self, places: list[tuple[str, str]]) -> type[AdapterLayer]:
        standing_on_text = {letter for letter, _ in places} & {"L", "C"}
        return ShallowConditional if standing_on_text else ShallowLayer

    def _fill(self, layer: AdapterLayer, adapter_name: str, config: Any, letter: str, place: str) -> None:
        if letter == WRAPPED:
            return
        if letter == TARGETS:
            layer.add_slot("", width_of(layer.base_layer, "input"))
            layer.update_layer(adapter_name, "", config.adapter_dim, config)
            return
        family = architecture_of(self.model)
        assert family is not None and isinstance(layer, ShallowLayer)
        encoder_layer = int(place.rpartition(".")[2]) if "@" in place else None
        if letter == "V" and encoder_layer is not None:
            slot = vision_slot(encoder_layer)
            layer.add_slot(slot, config_value(self.model.config, family.vision.width))
            layer.state_slots[extract_layers_of(family, self.model).index(encoder_layer)] = slot
            layer.update_layer(adapter_name, slot, config.adapter_dim, config)
            return
        assert isinstance(layer, ShallowConditional)
        if encoder_layer is None:
            layer.add_slot("", width_of(layer.base_layer, "output"))
            layer.update_layer(adapter_name, "", config.cond_adapter_dim, config)
            return
        if layer.text_states is None:
            layer.text_states = TextStates(self.model, family)
        layer.text_states.tap(self.model, encoder_layer)
        layer.text_layers.setdefault(adapter_name, []).append(encoder_layer)
        layer.text_residual[adapter_name] = config.text_residual
        layer.add_slot(text_slot(encoder_layer), config_value(self.model.config, family.text.width))
        layer.update_layer(adapter_name, text_slot(encoder_layer), config.adapter_dim, config)
