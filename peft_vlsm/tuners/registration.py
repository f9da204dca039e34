"""Gives peft's `PeftType` two members: it has no extension point for methods of other packages.

A plain string does not do, since peft and transformers call `.value` on the type.
"""

from typing import Any

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType, register_peft_method

DENSE_NAME = "VLSM_DENSE_ADAPTER"
SHALLOW_NAME = "VLSM_SHALLOW_ADAPTER"


def add_peft_type(name: str) -> PeftType:
    """
    Adds a member to `PeftType`, as an enum definition would have: found by name, by value, in iteration, by pickle.

    Args:
        name (`str`): the member's name and value, in capitals.

    Returns:
        `PeftType`: the member; the present one where there is one already.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    # Python 3.12 looks members up as class attributes, 3.11 in the member map.
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


def register(name: str, config_cls: type, model_cls: type) -> None:
    """
    Registers a tuner type with peft; a second import of the package replaces the first one's classes.

    Args:
        name (`str`): the member's name, in capitals.
        config_cls (`type`): the configuration class.
        model_cls (`type`): the tuner class.
    """
    peft_type = add_peft_type(name)
    for mapping in (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
        PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        mapping.pop(peft_type, None)
    register_peft_method(name=name.lower(), config_cls=config_cls, model_cls=model_cls)


add_peft_type(DENSE_NAME)
add_peft_type(SHALLOW_NAME)
