"""Composes a row's prompts p0 to p6 from a class's names and a mask's attributes: each adds one attribute."""

from collections.abc import Sequence
from dataclasses import asdict

from peft_vlsm.segmentation.attributes import MaskAttributes

TEMPLATES = {
    "p0": "",
    "p1": "{name}",
    "p2": "{shape} {name}",
    "p3": "{colour} {shape} {name}",
    "p4": "{size} {colour} {shape} {name}",
    "p5": "{number} {size} {colour} {shape} {name}",
    "p6": "{number} {size} {colour} {shape} {name}, located in {location} of the image",
}


def compose_prompts(class_names: Sequence[str], attributes: MaskAttributes) -> dict[str, str | list[str]]:
    """
    Fills `TEMPLATES`, which are in MedVLSM's manner.

    Args:
        class_names (`Sequence[str]`): at least one name of the class, such as `["grey matter", "gray matter"]`.
        attributes ([`MaskAttributes`]): what was measured from the mask.

    Returns:
        `dict[str, str | list[str]]`: under each of `TEMPLATES`' keys a string, or a list of strings (one a name) where
        the names make them differ.
    """
    prompts: dict[str, str | list[str]] = {}
    for key, template in TEMPLATES.items():
        filled = [template.format(name=name, **asdict(attributes)) for name in class_names]
        wordings = list(dict.fromkeys(filled))
        prompts[key] = wordings if len(wordings) > 1 else wordings[0]
    return prompts
