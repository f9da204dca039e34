"""What both tuners share: they put adapters into a model, through peft's own machinery."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..architectures.checkpointing import require_input_gradients
from ..architectures.declaration import Architecture
from ..architectures.families import architecture_of, known_models
from ..architectures.gradients import EncoderGradients, lift_hosts
from ..architectures.placement import Placement
from .average import add_average
from .config import VLSMAdapterConfig, matches_pattern
from .layer import NOT_MERGEABLE, AdapterLayer
from .sample_adapters import sample_adapters
from .targets import (
    RECORD_KEYS,
    TARGETS,
    is_excluded,
    is_target,
    lies_in,
    matched_targets,
    without_base_layer,
    wrapped_module,
    wrapped_modules,
)


class VLSMAdapterModel(BaseTuner):
    """
    Where an adapter goes is settled before anything is changed, and recorded in its config.

    Args:
        model (`nn.Module`): the base model.
        peft_config (`VLSMAdapterConfig` or `dict`): the adapter's configuration.
        adapter_name (`str`): its name.
        low_cpu_mem_usage (`bool`, defaults to `False`): make the weights on the meta device.
        state_dict (`dict`, *optional*): as in peft.
    """

    target_module_mapping: dict[str, list[str]] = {}
    encoder_gradients: EncoderGradients | None
    input_gradients: list[RemovableHandle]

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.encoder_gradients = None
        self.input_gradients = []

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Settles where the adapter goes, then lets peft put it there; see [`~peft.tuners.tuners_utils.BaseTuner`]."""
        config: Any = self.peft_config[adapter_name]
        found = copy.copy(config)
        found.modules_to_save = self._resolved_modules_to_save(found, model)
        found.resolved_modules = self._resolved_places(found, model)
        if config.filled_in and config.resolved_modules != found.resolved_modules:
            # Another model's adapter has this very config, with places of its own.
            config = found
            self.peft_config[adapter_name] = config
        config.filled_in = config.filled_in or config.resolved_modules is None
        for name in ("target_modules", "modules_to_save", "resolved_modules"):
            setattr(config, name, getattr(found, name))
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if self.encoder_gradients is None:
            self.encoder_gradients = lift_hosts(model, config.architecture)
            self.input_gradients = require_input_gradients(model, family_of(config, model))

    def _resolved_places(self, config: VLSMAdapterConfig, model: nn.Module) -> Placement | None:
        if config.resolved_modules is not None and not config.filled_in:
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
        family = family_of(config, model)
        if family is None:
            raise ValueError(
                f"target_modules is None, and {type(model).__name__} belongs to no family that peft_vlsm knows; "
                f"allowed: models of {known_models()}, or any other model with target_modules or an architecture."
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

        adapted = [place.rpartition("@")[2] for entries in places.values() for place in entries]
        for pattern in config.adapter_dim_pattern or {}:
            if not any(matches_pattern(pattern, name) for name in adapted):
                raise ValueError(
                    f"adapter_dim_pattern has {pattern!r}, which matches no module that is adapted; allowed: patterns "
                    f"for names such as {adapted[0]!r}."
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
            family = family_of(peft_config, self.model)
            encoder = None if family is None or letter == TARGETS else family.encoder_of(letter)
            if encoder is not None:
                layer.samples.batch_axis, layer.samples.folded = encoder.batch_axis, encoder.folded
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
                for part, parameter in getattr(layer, name).named_parameters():
                    if part.partition(".")[0] == adapter_name and parameter.dtype in (torch.float16, torch.bfloat16):
                        parameter.data = parameter.data.float()

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            # Every forward comes by here; looking for the layers in all modules is for the others alone.
            yield
            return
        with sample_adapters(self, list(self._layers().values()), adapter_names, list(self.peft_config)):
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

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float] | None, adapter_name: str
    ) -> None:
        """
        Adds the weighted average of adapters of one shape as a new adapter, which is not active yet.

        Args:
            adapters (`Sequence[str]`): names of adapters that stand in the same places with the same widths.
            weights (`Sequence[float]`, *optional*): a weight for each, divided by their sum; None weighs all alike.
            adapter_name (`str`): the name of the new adapter.

        Raises:
            `ValueError`: for unknown names, weights that give no average, or adapters of different shapes.
        """
        add_average(self, adapters, weights, adapter_name)

    def _release(self, layers: list[AdapterLayer]) -> None:
        for layer in layers:
            layer.release()
        if self.encoder_gradients is not None:
            self.encoder_gradients.remove()
            self.encoder_gradients = None
        for handle in self.input_gradients:
            handle.remove()
        self.input_gradients = []


def config_of(model: nn.Module) -> Any:
    """The model's own config, which paths like `vision_config.hidden_size` start from."""
    return model.config


def family_of(config: Any, model: nn.Module) -> Architecture | None:
    """The declaration that an adapter's config brings along, or that of the model's family."""
    return architecture_of(model) if config.architecture is None else config.architecture
