"""The fields of Dense and Shallow adapters, checked once when a configuration is made."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType
from transformers.activations import ACT2FN

from ..architectures.declaration import Architecture
from ..version import __version__
from .bottleneck import why_not
from .model_card import add_snippet
from .registration import DENSE_NAME, SHALLOW_NAME

VARIANT_LETTERS = "VLC"
# Beyond it a fresh adapter's change could exceed 1e-4 in float16.
LARGEST_SCALING = 1000


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
        activation (`str`, defaults to `"relu"`):
            the function between the block's two linear layers, by its name in transformers' `ACT2FN`.
        output_activation (`bool`, defaults to `True`):
            whether the same function stands after the second layer too, as in the paper. It must be zero and rising
            at zero then.
        dropout (`float`, defaults to 0.0): the share of a bottleneck's features that training sets to zero.
        scaling (`float` or `"learned"`, defaults to 1.0):
            what an adapter's change is multiplied by; `"learned"`: a number for each adapter, trained from 1 on.
        adapter_dim_pattern (`dict[str, int]`, *optional*):
            widths of the bottleneck that differ from `adapter_dim`, by names of modules or regular expressions, like
            LoRA's `rank_pattern`.
        reduction_factor (`float`, *optional*):
            instead of `adapter_dim`: how many times narrower than the hidden state the bottleneck is.
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
        architecture (`Architecture` or `dict`, *optional*):
            the model's declaration, for a model of no family that peft_vlsm knows, or other places in one that it
            does. Saved with the adapter, so that loading needs nothing else.
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
    activation: str = field(default="relu", metadata={"help": "A name in transformers' ACT2FN."})
    output_activation: bool = field(default=True, metadata={"help": "Whether it stands after the second layer too."})
    dropout: float = field(default=0.0, metadata={"help": "Share of the bottleneck's features set to zero."})
    scaling: float | str = field(default=1.0, metadata={"help": "What the change is multiplied by, or 'learned'."})
    adapter_dim_pattern: dict[str, int] | None = field(
        default=None, metadata={"help": "Widths by names of modules or regular expressions."}
    )
    reduction_factor: float | None = field(
        default=None, metadata={"help": "Instead of adapter_dim: hidden size divided by the width."}
    )
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
    architecture: Architecture | dict | None = field(
        default=None, metadata={"help": "The model's declaration, for a model of no known family."}
    )
    plugin_version: str | None = field(default=None, metadata={"help": "Version of peft_vlsm; filled in."})
    resolved_modules: dict[str, list[str]] | None = field(
        default=None, metadata={"help": "Where the adapter stands; filled in."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # No field: whether resolved_modules were found here, and not read from a saved adapter.
        self.filled_in = False
        self.plugin_version = self.plugin_version or __version__
        if isinstance(self.architecture, dict):
            self.architecture = Architecture.from_dict(self.architecture)
        self._check_numbers()
        self._check_modules()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.target_modules is None:
            self.variant = _checked_variant(self.variant)
            self.layers = _checked_layers(self.layers, self.variant)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """
        As in peft; where peft wrote a model card, it then says how the adapter is loaded.

        Args:
            save_directory (`str`): the folder, which is made if need be.
            kwargs: passed on to [`~peft.PeftConfig.save_pretrained`].
        """
        auto_mapping = kwargs.get("auto_mapping_dict") or self.auto_mapping
        super().save_pretrained(save_directory, **kwargs)
        peft_type = getattr(self.peft_type, "value", str(self.peft_type))
        add_snippet(save_directory, peft_type, self.base_model_name_or_path, auto_mapping)

    def _check_numbers(self) -> None:
        for name in ("adapter_dim", "cond_adapter_dim"):
            value = getattr(self, name)
            if not _is_index(value) or value == 0:
                raise ValueError(f"{name} is {value!r}; allowed: a positive whole number.")
        if not isinstance(self.init_weights, bool) and self.init_weights != "paper":
            raise ValueError(f"init_weights is {self.init_weights!r}; allowed: True, False or 'paper'.")

        self._check_block()
        if self.architecture is not None and not isinstance(self.architecture, Architecture):
            raise ValueError(f"architecture is {self.architecture!r}; allowed: an Architecture, or its fields.")

    def _check_block(self) -> None:
        if self.activation not in ACT2FN:
            raise ValueError(f"activation is {self.activation!r}; allowed: {', '.join(sorted(ACT2FN))}.")
        if not isinstance(self.output_activation, bool):
            raise ValueError(f"output_activation is {self.output_activation!r}; allowed: True or False.")
        reason = why_not(self.activation, self.output_activation)
        if reason is not None:
            allowed = [name for name in sorted(ACT2FN) if why_not(name, self.output_activation) is None]
            raise ValueError(f"activation is {self.activation!r}, which {reason}; allowed: {', '.join(allowed)}.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; allowed: a number from 0 to below 1.")
        if self.scaling != "learned" and not (_is_number(self.scaling) and 0 < float(self.scaling) <= LARGEST_SCALING):
            raise ValueError(
                f"scaling is {self.scaling!r}; allowed: a number above 0 and up to {LARGEST_SCALING}, or 'learned'."
            )
        if self.reduction_factor is not None:
            if not _is_number(self.reduction_factor) or self.reduction_factor < 1:
                raise ValueError(f"reduction_factor is {self.reduction_factor!r}; allowed: a number from 1.")
            default = type(self).__dataclass_fields__["adapter_dim"].default
            if self.adapter_dim != default:
                raise ValueError(
                    f"reduction_factor is {self.reduction_factor!r} beside adapter_dim {self.adapter_dim}; allowed: "
                    "one of both."
                )
        pattern = self.adapter_dim_pattern
        if pattern is not None:
            if not isinstance(pattern, dict) or not all(_is_index(width) and width for width in pattern.values()):
                raise ValueError(f"adapter_dim_pattern is {pattern!r}; allowed: names or patterns with a width each.")
            for name in pattern:
                _check_names("adapter_dim_pattern", name, "regular expressions or names of modules")

    def width_at(self, module: str, hidden_size: int, conditional: bool = False) -> int:
        """
        The width of the bottleneck at a module.

        Args:
            module (`str`): the module's name.
            hidden_size (`int`): the size of what is adapted there.
            conditional (`bool`, defaults to `False`): whether it is the conditional embedding that C adapts.
        """
        for pattern, width in (self.adapter_dim_pattern or {}).items():
            if matches_pattern(pattern, module):
                return width
        if conditional:
            return self.cond_adapter_dim
        if self.reduction_factor is not None:
            return max(1, int(hidden_size // self.reduction_factor))
        return self.adapter_dim

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
        for name, default in (("variant", None), ("layers", None), ("cond_adapter_dim", 256), ("architecture", None)):
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


def matches_pattern(pattern: str, module: str) -> bool:
    """Whether a key of `adapter_dim_pattern` names a module: as its end, or as a regular expression for its end."""
    return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
