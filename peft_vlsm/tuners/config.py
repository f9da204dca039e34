"""The fields of Dense and Shallow adapters, checked once when a configuration is made."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils import PeftType

from ..version import __version__
from .registration import DENSE_NAME, SHALLOW_NAME

VARIANT_LETTERS = "VLC"


@dataclass
class VLSMAdapterConfig(PeftConfig):
    """
    What Dense and Shallow adapters share. Use [`DenseAdapterConfig`] or [`ShallowAdapterConfig`].

    Args:
        variant (`str`, *optional*):
            where adapters stand: a non-empty set of the letters V (vision encoder), L (text encoder) and C
            (conditional embedding), in any order. None means `"VL"`, unless `target_modules` are given.
        adapter_dim (`int`): width of the bottleneck.
        cond_adapter_dim (`int`, defaults to 256): width of the bottleneck of C.
        layers (`str` or `list[int]`, *optional*):
            which encoder layers. Dense: `"paper"` (None means it), in each encoder the first
            `min(depth, max(extract_layers))` layers; `"all"`, in the vision encoder every layer that reaches a
            text-prompted mask and in the text encoder all; or a list of indices. Shallow: which of `extract_layers`,
            all of them for None, `"paper"` and `"all"`.
        init_weights (`bool` or `str`, defaults to `True`):
            `True`: a fresh adapter does not change the output (at most 1e-4) and trains in float32, bfloat16, float16
            and under autocast; `"paper"`: `nn.Linear`'s own initialisation; `False`: random, for tests.
        target_modules (`str` or `list[str]`, *optional*):
            names of modules, or a regular expression, as in peft. They replace the family's declaration and work on
            any torch model: Dense adapts the output of these modules, Shallow their input.
        exclude_modules (`str` or `list[str]`, *optional*): modules that get no adapter, as in peft.
        layers_to_transform (`int` or `list[int]`, *optional*):
            of the matched `target_modules` only those in layers with these indices.
        layers_pattern (`str` or `list[str]`, *optional*):
            name of the module list that `layers_to_transform` counts in, for example `"layers"`.
        modules_to_save (`list[str]`, *optional*):
            modules that are trained and saved along with the adapter, for example `["decoder"]`.
        text_residual (`bool`, *optional*):
            Shallow with L only: whether the tapped text states themselves are added to the conditional embedding, as
            the paper's code does, and not only what the adapters make of them. None means yes for
            `init_weights="paper"` and no otherwise, since a fresh adapter could not leave the output unchanged.
        plugin_version (`str`, *optional*): the version of peft_vlsm that made the adapter; filled in.
        resolved_modules (`dict[str, list[str]]`, *optional*):
            the places of this adapter, filled in when it is put into a model. A saved adapter goes to these places
            again, whatever the declarations of a later version say.

    Raises:
        `ValueError`: for a wrong value, with the field, the value and what is allowed.
    """

    variant: str | None = field(default=None, metadata={"help": "Where adapters stand: letters out of V, L and C."})
    adapter_dim: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    cond_adapter_dim: int = field(default=256, metadata={"help": "Width of the bottleneck of C."})
    layers: str | list[int] | None = field(default=None, metadata={"help": "'paper', 'all' or layer indices."})
    init_weights: bool | str = field(default=True, metadata={"help": "True, 'paper' or False."})
    target_modules: str | list[str] | set[str] | None = field(
        default=None, metadata={"help": "Module names or a regular expression, instead of the family's declaration."}
    )
    exclude_modules: str | list[str] | set[str] | None = field(
        default=None, metadata={"help": "Module names or a regular expression of modules that get no adapter."}
    )
    layers_to_transform: int | list[int] | None = field(
        default=None, metadata={"help": "Layer indices, with target_modules."}
    )
    layers_pattern: str | list[str] | None = field(
        default=None, metadata={"help": "Name of the module list that layers_to_transform counts in."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved along with the adapter."}
    )
    plugin_version: str | None = field(default=None, metadata={"help": "Version of peft_vlsm; filled in."})
    resolved_modules: dict[str, list[str]] | None = field(
        default=None, metadata={"help": "Where the adapter stands; filled in."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.plugin_version = self.plugin_version or __version__
        self._check_numbers()
        self._check_modules()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.target_modules is None:
            self.variant = _checked_variant(self.variant)
            self.layers = _checked_layers(self.layers, self.variant)

    def _check_numbers(self) -> None:
        for name in ("adapter_dim", "cond_adapter_dim"):
            value = getattr(self, name)
            if not _is_index(value) or value == 0:
                raise ValueError(f"{name} is {value!r}; allowed: a positive whole number.")
        if not isinstance(self.init_weights, bool) and self.init_weights != "paper":
            raise ValueError(f"init_weights is {self.init_weights!r}; allowed: True, False or 'paper'.")

    def _check_modules(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            _check_names(name, getattr(self, name), "a regular expression or a non-empty list of module names")
        if isinstance(self.modules_to_save, str):
            raise ValueError(f"modules_to_save is {self.modules_to_save!r}; allowed: a list of module names.")
        if self.modules_to_save:
            _check_names("modules_to_save", self.modules_to_save, "a list of module names")
        if self.target_modules is None:
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r} without target_modules; allowed: together with "
                        "target_modules, or layers instead."
                    )
            return
        for name, default in (("variant", None), ("layers", None), ("cond_adapter_dim", 256)):
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} beside target_modules, which replace it; allowed: one of both."
                )
        if self.layers_to_transform is None:
            if self.layers_pattern is not None:
                raise ValueError(
                    f"layers_pattern is {self.layers_pattern!r} without layers_to_transform; allowed: both or none."
                )
            return
        indices = [self.layers_to_transform] if _is_index(self.layers_to_transform) else self.layers_to_transform
        if not isinstance(indices, list) or not indices or not all(_is_index(index) for index in indices):
            raise ValueError(
                f"layers_to_transform is {self.layers_to_transform!r}; allowed: a layer index from 0, or a list of "
                "them."
            )
        _check_names("layers_pattern", self.layers_pattern, "a name or a non-empty list of names")


@dataclass
class DenseAdapterConfig(VLSMAdapterConfig):
    __doc__ = f"""
    Dense adapters: a bottleneck after self-attention and one after the MLP of each encoder layer, before the residual
    addition (VLSM-Adapter, arXiv 2405.06196, section 3).

    `adapter_dim` is 64 by default. {VLSMAdapterConfig.__doc__}
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[DENSE_NAME]


@dataclass
class ShallowAdapterConfig(VLSMAdapterConfig):
    __doc__ = f"""
    Shallow adapters: bottlenecks on the hidden states handed to the decoder; the encoders' own chain is not touched
    (VLSM-Adapter, arXiv 2405.06196, section 3).

    `adapter_dim` is 512 by default. {VLSMAdapterConfig.__doc__}
    """

    adapter_dim: int = field(default=512, metadata={"help": "Width of the bottleneck."})
    text_residual: bool | None = field(
        default=None, metadata={"help": "Whether the tapped text states are added too, as in the paper's code."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[SHALLOW_NAME]
        if self.text_residual is None:
            if self.variant is not None and "L" in self.variant:
                self.text_residual = self.init_weights == "paper"
        elif not isinstance(self.text_residual, bool):
            raise ValueError(f"text_residual is {self.text_residual!r}; allowed: True, False or None.")
        elif self.variant is None or "L" not in self.variant:
            raise ValueError(
                f"text_residual is {self.text_residual!r} beside variant {self.variant!r}; allowed: with L."
            )


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_names(name: str, value: str | Iterable[str] | None, allowed: str) -> None:
    if value is None:
        return
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, set, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}.")
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{name} is {value!r}, no regular expression ({error}); allowed: {allowed}.") from None


def _checked_variant(variant: str | None) -> str:
    if variant is None:
        return "VL"
    if not isinstance(variant, str) or not variant or set(variant) - set(VARIANT_LETTERS):
        raise ValueError(f"variant is {variant!r}; allowed: a non-empty set of the letters V, L and C, such as 'VLC'.")
    if len(set(variant)) < len(variant):
        raise ValueError(f"variant is {variant!r}, which repeats a letter; allowed: each of V, L and C at most once.")
    return "".join(letter for letter in VARIANT_LETTERS if letter in variant)


def _checked_layers(layers: str | list[int] | None, variant: str) -> str | list[int]:
    if layers is None:
        return "paper"
    if isinstance(layers, str):
        if layers not in ("paper", "all"):
            raise ValueError(f"layers is {layers!r}; allowed: 'paper', 'all' or a list of layer indices.")
        return layers
    if not isinstance(layers, (list, tuple)) or not layers or not all(_is_index(layer) for layer in layers):
        raise ValueError(f"layers is {layers!r}; allowed: 'paper', 'all' or a non-empty list of layer indices from 0.")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers is {layers!r}, which repeats an index; allowed: each index once.")
    if variant == "C":
        raise ValueError(f"layers is {layers!r}, but variant 'C' adapts no encoder; allowed: variants with V or L.")
    return list(layers)
