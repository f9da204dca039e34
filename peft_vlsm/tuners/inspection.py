"""What there is to know of a model or of an adapter before any weight is loaded.

A model is built from its config on the meta device, and adapted there by `get_peft_model` itself: what is counted is
what training would get. Of an adapter only its settings and the header of its weight file are read.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from ..architectures import FAMILIES, Architecture
from ..architectures.families import PART_OF, family_of_config, model_class_of
from ..architectures.placement import dense_placement, shallow_placement
from ..architectures.reach import layer_names, reached_vision_layers
from .config import VARIANT_LETTERS, DenseAdapterConfig, ShallowAdapterConfig, VLSMAdapterConfig
from .layer import AdapterLayer, text_slot, vision_slot
from .registration import DENSE_NAME, SHALLOW_NAME
from .targets import wrapped_module
from .widths import width_of

METHODS = {"dense": (DenseAdapterConfig, dense_placement), "shallow": (ShallowAdapterConfig, shallow_placement)}
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TYPES = {DENSE_NAME: DenseAdapterConfig, SHALLOW_NAME: ShallowAdapterConfig}
# What a config of any content may raise, as it is read and as its model is built.
_UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)


@dataclass(frozen=True)
class Place:
    """
    A place of one model where an adapter could go.

    Args:
        letter (`str`): V, L or C.
        module (`str`): the place, as in `resolved_modules`: `MODULE`, or `MODULE@LAYER` for Shallow's hidden states.
        hidden_size (`int`): size in features of the tensor that is adapted.
        width (`int`): size in features of the bottleneck.
        parameters (`int`): number of parameters of the bottleneck; 0 where none can stand.
        reaches (`bool`): whether the model's output depends on this place.
        adapted (`bool`): whether the chosen settings put an adapter there.
    """

    letter: str
    module: str
    hidden_size: int
    width: int
    parameters: int
    reaches: bool
    adapted: bool


@dataclass(frozen=True)
class ModelReport:
    """
    Where adapters can go in a model.

    Args:
        name (`str`): the model's class.
        config (`VLSMAdapterConfig`): the chosen settings.
        places (`list[Place]`): V first, then L, then C.
        unavailable (`dict[str, str]`): letters that cannot be, each with the reason.
        trainable (`int`): number of trainable parameters under the chosen settings.
        total (`int`): number of parameters of the model with its adapters.
    """

    name: str
    config: VLSMAdapterConfig
    places: list[Place]
    unavailable: dict[str, str]
    trainable: int
    total: int


@dataclass(frozen=True)
class AdapterReport:
    """
    What a saved adapter is.

    Args:
        config (`VLSMAdapterConfig`): its settings, as saved.
        unknown_fields (`list[str]`): fields of its settings that this version of peft_vlsm does not have.
        size (`int`): size of the weight file in bytes.
        tensors, parameters (`int`): how many tensors are in it, and how many numbers in all of them.
    """

    config: VLSMAdapterConfig
    unknown_fields: list[str]
    size: int
    tensors: int
    parameters: int


def inspect_model(
    name: str, method: str = "dense", variant: str | None = None, layers: str = "paper", adapter_dim: int | None = None
) -> ModelReport:
    """
    Tells where adapters can go in a model and what they cost, without its weights.

    Args:
        name (`str`): a folder with a `config.json`, or a name on the Hub.
        method (`str`, defaults to `"dense"`): `"dense"` or `"shallow"`.
        variant (`str`, *optional*): letters out of V, L and C. None means all that the model can have.
        layers (`str`, defaults to `"paper"`): `"paper"` or `"all"`, as in [`DenseAdapterConfig`].
        adapter_dim (`int`, *optional*): width of the bottleneck in features. None means the method's default.

    Raises:
        `ValueError`: for a config that cannot be read, a model of no known family, or settings that it cannot have.
    """
    config_cls, placement = METHODS[method]
    family, model = _model_on_meta(name)
    unavailable = {}
    for letter in VARIANT_LETTERS:
        try:
            placement(family, model, letter, "all")
        except ValueError as error:
            unavailable[letter] = str(error)
    there = "".join(letter for letter in VARIANT_LETTERS if letter not in unavailable)

    adapter_dim = config_cls.adapter_dim if adapter_dim is None else adapter_dim
    # Where there is no letter at all, the placement's own error says why.
    wanted = (there or VARIANT_LETTERS) if variant is None else variant
    config = config_cls(variant=wanted, layers=layers, adapter_dim=adapter_dim)
    adapted: Any = get_peft_model(model, config)
    trainable, total = adapted.get_nb_trainable_parameters()
    chosen = {place for places in (config.resolved_modules or {}).values() for place in places}

    everywhere = config_cls(variant=there, layers="all", adapter_dim=adapter_dim)
    full = get_peft_model(adapted.unload(), everywhere).get_base_model()
    places = []
    for letter, modules in (everywhere.resolved_modules or {}).items():
        for module in modules:
            fc1, fc2 = _linears_at(full, family, letter, module)
            count = sum(parameter.numel() for parameter in (*fc1.parameters(), *fc2.parameters()))
            places.append(Place(letter, module, fc1.in_features, fc1.out_features, count, True, module in chosen))
        if letter == "V" and method == "dense":
            places += _unreached_places(full, family, config)
    return ModelReport(type(model).__name__, config, places, unavailable, trainable, total)


def inspect_adapter(folder: str | Path) -> AdapterReport:
    """
    Tells what a saved Dense or Shallow adapter is, without its base model and without reading its weights.

    Args:
        folder (`str` or `Path`): a folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        `ValueError`: for a file that is missing or cannot be read, or an adapter of another type.
    """
    file, weights = Path(folder) / ADAPTER_CONFIG, Path(folder) / ADAPTER_WEIGHTS
    content = _read_json(file)
    kind = str(content.get("peft_type"))
    if kind not in _TYPES:
        raise ValueError(f"{file} has the peft_type {kind}; allowed: {', '.join(_TYPES)}; name such an adapter.")
    known = {field.name for field in fields(_TYPES[kind])}
    try:
        config = _TYPES[kind](**{name: value for name, value in content.items() if name in known})
    except _UNUSABLE as error:
        raise ValueError(f"{file} has a wrong setting: {error}") from error
    if not _is_placement(config.resolved_modules):
        raise ValueError(f"{file} has a wrong resolved_modules; allowed: a list of module names for each letter.")
    try:
        with safe_open(weights, framework="pt") as tensors:
            counts = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights} is no safetensors file ({error}); copy it or save it again.") from error
    return AdapterReport(config, sorted(set(content) - known), weights.stat().st_size, len(counts), sum(counts))


def _is_placement(value: object) -> bool:
    lists = value.values() if isinstance(value, dict) else [] if value is None else [None]
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)


def _linears_at(model: nn.Module, family: Architecture, letter: str, place: str) -> tuple[nn.Linear, nn.Linear]:
    layer, state_of = model.get_submodule(wrapped_module(place)), place.partition("@")[2]
    assert isinstance(layer, AdapterLayer)
    encoder = family.encoder_of(letter)
    if not state_of or encoder is None:
        return layer.linears_of("default")
    index = layer_names(encoder, model).index(state_of)
    return layer.linears_of("default", vision_slot(index) if letter == "V" else text_slot(index))


def _unreached_places(model: nn.Module, family: Architecture, config: VLSMAdapterConfig) -> list[Place]:
    assert family.vision is not None
    beyond = layer_names(family.vision, model)[reached_vision_layers(family, model) :]
    places = []
    for module in (f"{layer}.{part}" for layer in beyond for part in family.vision.dense):
        size = width_of(model.get_submodule(module), "output")
        places.append(Place("V", module, size, config.width_at(module, size), 0, reaches=False, adapted=False))
    return places


def _model_on_meta(name: str) -> tuple[Architecture, Any]:
    file = _config_file(name)
    model_type = _read_json(file).get("model_type")
    known = [family.model_type for family in FAMILIES]
    if model_type not in (*known, *PART_OF):
        raise ValueError(f"{file} has the model_type {model_type!r}; allowed: {', '.join(known)}.")
    try:
        family, config = family_of_config(AutoConfig.from_pretrained(str(file.parent), trust_remote_code=False))
        assert family is not None
        with torch.device("meta"):
            return family, model_class_of(family)(config)
    except _UNUSABLE as error:
        raise ValueError(f"{file} describes no model that can be built: {error}") from error


def _config_file(name: str) -> Path:
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"{name} is a file; name the folder that it is in.")
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder / "config.json"
        raise ValueError(f"{name} has neither config.json nor {ADAPTER_CONFIG}; name a model's or adapter's folder.")
    try:
        return Path(str(cached_file(name, "config.json")))
    except (OSError, ValueError) as error:  # The Hub's client before 1.0 has a ValueError for what can be no name.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} does not exist here, and the Hub gives no config.json of that name: {reason}"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} holds no JSON object ({error}); restore it or save it again.") from error
