"""Reads checkpoints of the paper's own code into a model with Dense or Shallow adapters.

That code keeps its adapters beside the model, in lists named by where they act (`v_attn_adapters.3.fc1.weight`), under
`net.` in a Lightning checkpoint, which also holds the base model's weights.
"""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..architectures.declaration import Architecture
from ..architectures.families import architecture_of, known_models
from .config import ShallowAdapterConfig
from .layer import AdapterLayer, ShallowConditional, text_slot, vision_slot
from .model import VLSMAdapterModel
from .targets import TARGETS, without_base_layer

# The lists of the paper's code, in which every adapter key begins after an optional `net.`.
PAPER_LISTS = (
    "v_attn_adapters",
    "v_out_adapters",
    "l_attn_adapters",
    "l_out_adapters",
    "cond_adapter",
    "vision_extract_adapters",
    "text_extract_adapters",
)


def load_vlsm_adapter_checkpoint(
    peft_model: PeftModel, checkpoint: Mapping[str, torch.Tensor] | str | os.PathLike[str]
) -> None:
    """
    Loads adapters that the code of VLSM-Adapter (arXiv 2405.06196) trained into the active adapter of a model.

    After it the model computes what that code computes: Shallow's text adapters then add the tapped text states too
    (`text_residual`).

    Args:
        peft_model (`PeftModel`):
            a model with [`DenseAdapterConfig`] or [`ShallowAdapterConfig`] of the same variant and widths, and default
            `layers`.
        checkpoint (`Mapping[str, torch.Tensor]` or path):
            the weights, a `.safetensors` file of them, or a Lightning `.ckpt` (read with `weights_only=True`); keys
            with or without `net.`. Where it holds the base model too, its weights must equal this model's.

    Raises:
        `ValueError`: for another base model, missing, unexpected or misshapen keys, or a file of another kind; nothing
            is changed then.
    """
    tuner = peft_model.base_model
    if not isinstance(tuner, VLSMAdapterModel):
        raise ValueError(
            f"peft_model has a {type(tuner).__name__}; allowed: a model with a DenseAdapterConfig or "
            "ShallowAdapterConfig."
        )
    if len(tuner.active_adapters) != 1:
        raise ValueError(f"peft_model has the active adapters {tuner.active_adapters}; allowed: exactly one.")
    adapter_name = tuner.active_adapters[0]
    source = "checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    adapter, base = _split(_read(checkpoint, source), source)
    wanted = paper_parameters(tuner, adapter_name)
    _check_adapter(adapter, wanted, source)
    _check_base(base, tuner, source)
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(adapter[key])
    _add_text_states(tuner, adapter_name)


def _read(checkpoint: Mapping[str, torch.Tensor] | str | os.PathLike[str], source: str) -> dict[str, torch.Tensor]:
    if isinstance(checkpoint, Mapping):
        content = dict(checkpoint)
    else:
        path = Path(checkpoint)
        if not path.is_file():
            raise ValueError(f"{source} is no file; allowed: a .safetensors or .ckpt file of the paper's code.")
        try:
            if path.suffix == ".safetensors":
                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{source} cannot be read ({reason}); allowed: a .safetensors file, or a .ckpt with tensors only."
            ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{source} holds more than tensors; allowed: weights, or a .ckpt with them as state_dict.")
    return dict(content)


def _split(weights: dict[str, torch.Tensor], source: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    adapter: dict[str, torch.Tensor] = {}
    base: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        plain = key.removeprefix("net.")
        if plain.partition(".")[0] not in PAPER_LISTS:
            base[plain] = value
        elif plain in adapter:
            raise ValueError(f"{source} has {plain!r} with and without 'net.'; allowed: one of both.")
        else:
            adapter[plain] = value
    return adapter, base


def paper_parameters(tuner: VLSMAdapterModel, adapter_name: str) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters under the names of the paper's code."""
    family = architecture_of(tuner.model)
    if family is None:
        raise ValueError(f"the base model is a {type(tuner.model).__name__}; allowed: {known_models()}.")
    config: Any = tuner.peft_config[adapter_name]
    places = config.resolved_modules or {}
    if TARGETS in places:
        raise ValueError("the adapter has target_modules; allowed: one with a variant, as the paper's code has.")
    slots = _shallow_slots(places) if isinstance(config, ShallowAdapterConfig) else _dense_slots(family, places)
    wanted: dict[str, torch.nn.Parameter] = {}
    for name, (module, slot) in slots.items():
        layer = tuner.model.get_submodule(module)
        assert isinstance(layer, AdapterLayer)
        for fc, linear in zip(("fc1", "fc2"), layer.linears_of(adapter_name, slot), strict=True):
            for kind, parameter in linear.named_parameters():
                wanted[f"{name}.{fc}.{kind}"] = parameter
    return wanted


def _conditional_slots(places: Mapping[str, list[str]]) -> dict[str, tuple[str, str]]:
    return {"cond_adapter": (places["C"][0], "")} if places.get("C") else {}


def _dense_slots(family: Architecture, places: Mapping[str, list[str]]) -> dict[str, tuple[str, str]]:
    slots = _conditional_slots(places)
    for letter, encoder in (("V", family.vision), ("L", family.text)):
        for module in places.get(letter, ()):
            assert encoder is not None
            layer, _, part = module.removeprefix(f"{encoder.layers}.").partition(".")
            kind = "attn" if part == encoder.dense[0] else "out"
            slots[f"{letter.lower()}_{kind}_adapters.{layer}"] = (module, "")
    return slots


def _shallow_slots(places: Mapping[str, list[str]]) -> dict[str, tuple[str, str]]:
    slots = _conditional_slots(places)
    for letter, name, slot_of in (("V", "vision", vision_slot), ("L", "text", text_slot)):
        for index, place in enumerate(places.get(letter, ())):
            module, _, layer = place.partition("@")
            slots[f"{name}_extract_adapters.{index}"] = (module, slot_of(int(layer.rpartition(".")[2])))
    return slots


def _check_adapter(adapter: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.nn.Parameter], source: str) -> None:
    missing = sorted(set(wanted) - set(adapter))
    unexpected = sorted(set(adapter) - set(wanted))
    misshapen = sorted(key for key in set(wanted) & set(adapter) if adapter[key].shape != wanted[key].shape)
    problems = [f"missing keys {missing}"] * bool(missing) + [f"unexpected keys {unexpected}"] * bool(unexpected)
    problems += [
        f"{key} of shape {tuple(adapter[key].shape)}, where this adapter has {tuple(wanted[key].shape)}"
        for key in misshapen
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit this adapter: {'; '.join(problems)}; allowed: a checkpoint of the same variant, "
            "layers and widths."
        )


def _check_base(base: Mapping[str, torch.Tensor], tuner: VLSMAdapterModel, source: str) -> None:
    own = _base_state(tuner)
    unexpected, different = [], []
    for key, value in base.items():
        name = key
        while name not in own and "." in name:
            name = name.partition(".")[2]
        if name.endswith("position_ids"):
            # transformers before 4.31 saved these constants.
            continue
        if name not in own:
            unexpected.append(key)
        elif own[name].shape != value.shape or not torch.equal(value.to(own[name]), own[name]):
            different.append(key)
    if unexpected:
        raise ValueError(
            f"{source} has the unexpected keys {sorted(unexpected)}; allowed: adapters of the paper's code, and the "
            "weights of this base model."
        )
    if different:
        raise ValueError(
            f"{source} holds an adapter that was trained on another base: {sorted(different)[0]} and "
            f"{len(different) - 1} more weights differ from this model's; allowed: a model made from the same base."
        )


def _base_state(tuner: VLSMAdapterModel) -> dict[str, torch.Tensor]:
    """The base model's weights under the names that they have without adapters."""
    inner = [f".{name}." for layer in tuner._layers().values() for name in layer.adapter_layer_names]
    return {
        without_base_layer(name): value
        for name, value in tuner.model.state_dict().items()
        if not any(part in name for part in inner)
    }


def _add_text_states(tuner: VLSMAdapterModel, adapter_name: str) -> None:
    config: Any = tuner.peft_config[adapter_name]
    if not isinstance(config, ShallowAdapterConfig) or "L" not in (config.variant or ""):
        return
    config.text_residual = True
    for layer in tuner._layers().values():
        if isinstance(layer, ShallowConditional):
            layer.text_residual[adapter_name] = True
