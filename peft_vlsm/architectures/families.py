"""The families that peft_vlsm knows, and how a model finds its declaration."""

import importlib
from typing import Any

from torch import nn

from .clip import CLIP
from .clipseg import CLIPSEG
from .declaration import Architecture
from .groupvit import GROUPVIT
from .metaclip_2 import METACLIP_2
from .owlv2 import OWLV2
from .owlvit import OWLVIT
from .sam3 import SAM3
from .siglip import SIGLIP
from .siglip2 import SIGLIP2

FAMILIES: tuple[Architecture, ...] = (
    CLIPSEG,
    SAM3,
    GROUPVIT,
    OWLVIT,
    OWLV2,
    CLIP,
    SIGLIP,
    SIGLIP2,
    METACLIP_2,
)
# Configurations that hold one of a family as a part: facebook/sam3 is a SAM3 beside its tracker for video.
PART_OF = {"sam3_video": "detector_config"}
_registered: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """
    Makes a declaration known, so that models of its `model_type` get adapters by `variant` alone.

    A model loaded elsewhere needs the same call first; a declaration given in the adapter's config is saved with it.

    Args:
        architecture (`Architecture`): the declaration; replaces an earlier one of the same `model_type`.

    Raises:
        `ValueError`: if its `model_type` is one of a family that peft_vlsm declares.
    """
    known = [family.model_type for family in FAMILIES]
    if architecture.model_type in known:
        raise ValueError(
            f"model_type is {architecture.model_type!r}, which peft_vlsm declares itself; allowed: other types, or "
            "the field architecture of an adapter's config."
        )
    _registered[architecture.model_type] = architecture


def architecture_of(model: nn.Module) -> Architecture | None:
    """
    The declaration that fits a model.

    Args:
        model (`nn.Module`): a model; its class decides, subclasses included.

    Returns:
        `Architecture` or `None`: the declaration, None where the model belongs to no family.
    """
    return next((family for family in (*_registered.values(), *FAMILIES) if family.is_host(model)), None)


def family_of_config(config: Any) -> tuple[Architecture | None, Any]:
    """
    The family whose model a configuration describes, and that model's own part of the configuration.

    Args:
        config (`~transformers.PretrainedConfig`): of any model.

    Returns:
        `tuple[Architecture | None, PretrainedConfig]`: None where it is none of the families that peft_vlsm declares.
    """
    part = getattr(config, PART_OF[config.model_type]) if config.model_type in PART_OF else config
    return next((family for family in FAMILIES if family.model_type == part.model_type), None), part


def model_class_of(family: Architecture) -> Any:
    """The class in transformers that a declared family's model has."""
    # transformers' own namespace has a stand-in for Sam3Model where torchvision is missing.
    module = importlib.import_module(f"transformers.models.{family.model_type}.modeling_{family.model_type}")
    assert family.model_class is not None
    return getattr(module, family.model_class)


def hosts_of(model: nn.Module) -> list[tuple[nn.Module, Architecture]]:
    """Every module inside `model`, itself included, that belongs to a family, with its declaration."""
    found = ((module, architecture_of(module)) for module in model.modules())
    return [(module, family) for module, family in found if family is not None]


def known_models() -> str:
    """The model classes of all families, for error messages."""
    return ", ".join(family.name for family in (*FAMILIES, *_registered.values()))
