"""The families that peft_vlsm knows, and how a model finds its declaration."""

from torch import nn

from .clipseg import CLIPSEG
from .declaration import Architecture

FAMILIES: tuple[Architecture, ...] = (CLIPSEG,)


def architecture_of(model: nn.Module) -> Architecture | None:
    """
    The declaration that fits a model.

    Args:
        model (`nn.Module`): a model; its class decides, subclasses included.

    Returns:
        `Architecture` or `None`: the declaration, None where the model belongs to no family.
    """
    return next((family for family in FAMILIES if family.is_host(model)), None)


def hosts_of(model: nn.Module) -> list[tuple[nn.Module, Architecture]]:
    """Every module inside `model`, itself included, that belongs to a family, with its declaration."""
    found = ((module, architecture_of(module)) for module in model.modules())
    return [(module, family) for module, family in found if family is not None]


def known_models() -> str:
    """The model classes of all families, for error messages."""
    return ", ".join(family.model_class for family in FAMILIES)
