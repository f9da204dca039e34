"""Composes a row's prompts in MedVLSM's manner: each adds something to the one before it.

Photographs (polyps, skin, feet, slices) have p0 to p6, and p7 to p9 where the class has descriptions; breast
ultrasound and chest X-rays have p0 to p6, echocardiograms p0 to p7. An empty mask has nothing to measure: its prompts
name the class alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product

from peft_vlsm.segmentation.prompts.attributes import MaskAttributes

Prompts = dict[str, str | list[str]]

TEMPLATES = {
    "p0": "",
    "p1": "{name}",
    "p2": "{shape} {name}",
    "p3": "{colour} {shape} {name}",
    "p4": "{size} {colour} {shape} {name}",
    "p5": "{number} {size} {colour} {shape} {name}",
    "p6": "{number} {size} {colour} {shape} {name}, located in {location} of the image",
}
DESCRIPTION_TEMPLATES = {
    "p7": "{name} which is {description}",
    "p8": "{number} {size} {colour} {shape} {name} which is {description}",
    "p9": "{number} {size} {colour} {shape} {name} which is {description} located in {location} of the image",
}
TUMOR_TEMPLATES = {
    "p0": "",
    "p1": "tumor in the breast ultrasound image.",
    "p2": "{kind} tumor in the breast ultrasound image.",
    "p3": "{number} {kind} {tumor} in the breast ultrasound image.",
    "p4": "{number} {size} {kind} {tumor} in the breast ultrasound image.",
    "p5": "{number} {size} {kind} {tumor} at the {location} in the breast ultrasound image.",
    "p6": "{number} {size} {shape}-shaped {short_kind} {tumor} at the {location} in the breast ultrasound image.",
}
XRAY_TEMPLATES = {
    "p0": "",
    "p1": "{name} in a chest Xray.",
    "p2": "{name} in the {view} view of a Chest Xray.",
    "p3": "{name} of shape {shape} in the {view} view of a Chest Xray.",
    "p4": "{name} of shape {shape}, and located in {location} of the {view} view of a Chest Xray.",
    "p5": "{name} of shape {shape}, and located in {location} of the {view} view of a Chest Xray. {present}",
    "p6": "{name} in a Chest Xray. {present}",
}
UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def compose_prompts(
    class_names: Sequence[str], attributes: MaskAttributes | None, descriptions: Sequence[str] = ()
) -> Prompts:
    """
    Fills `TEMPLATES`, and `DESCRIPTION_TEMPLATES` where there are descriptions.

    Args:
        class_names (`Sequence[str]`): at least one name of the class, such as `["grey matter", "gray matter"]`.
        attributes ([`MaskAttributes`], *optional*): what was measured from the mask. None: the mask is empty, and
            the prompts hold name and description alone.
        descriptions (`Sequence[str]`, defaults to none): what the class is, such as `"a growth on the bowel wall"`.

    Returns:
        `dict[str, str | list[str]]`: under each of the templates' keys a string, or a list of strings (one a name and
        description) where these make them differ.
    """
    templates = TEMPLATES | (DESCRIPTION_TEMPLATES if descriptions else {})
    if attributes is None:
        bare = {"p0": "", **dict.fromkeys(TEMPLATES.keys() - {"p0"}, TEMPLATES["p1"])}
        described = dict.fromkeys(DESCRIPTION_TEMPLATES, DESCRIPTION_TEMPLATES["p7"])
        templates = {key: (bare | described)[key] for key in templates}
    measured = {} if attributes is None else asdict(attributes)
    return _fill(
        templates,
        [
            {"name": name, "description": description, **measured}
            for name, description in product(class_names, descriptions or [""])
        ],
    )


def compose_tumor_prompts(class_names: Sequence[str], attributes: MaskAttributes | None) -> Prompts:
    """
    Prompts p0 to p6 for breast ultrasound.

    Args:
        class_names (`Sequence[str]`): kinds of tumor as adjectives, such as `["benign", "regular-shaped"]`.
        attributes ([`MaskAttributes`], *optional*): None: the mask is empty, and every prompt says that there is no
            tumor.

    Returns:
        `dict[str, str | list[str]]`: as of [`compose_prompts`], sentences that begin with a capital letter.
    """
    if attributes is None:
        return {"p0": "", **dict.fromkeys(list(TUMOR_TEMPLATES)[1:], "No tumor in the breast ultrasound image.")}
    tumor = "tumor" if attributes.number == "one" else "tumors"
    words = {"tumor": tumor, **asdict(attributes)}
    kinds = [{"kind": kind, "short_kind": kind.removesuffix("-shaped"), **words} for kind in class_names]
    return _fill(TUMOR_TEMPLATES, kinds)


def compose_heart_prompts(
    class_names: Sequence[str],
    attributes: MaskAttributes | None,
    view: str,
    instant: str,
    sex: str | None = None,
    age: int | None = None,
    quality: str | None = None,
) -> Prompts:
    """
    Prompts p0 to p7 for echocardiograms; what is not known of the patient is left out.

    Args:
        class_names (`Sequence[str]`): names of the structure, such as `["Myocardium"]`.
        attributes ([`MaskAttributes`], *optional*): gives the shape of p7. None: the mask is empty.
        view (`str`): `"two-chamber"` or `"four-chamber"`.
        instant (`str`): `"diastole"` or `"systole"`.
        sex (`str`, *optional*): `"female"` or `"male"`.
        age (`int`, *optional*): in years.
        quality (`str`, *optional*): of the image, such as `"good"`.

    Returns:
        `dict[str, str | list[str]]`: as of [`compose_prompts`], each in two wordings.
    """
    person = sex or "patient"
    who = f" of a {sex}" if sex else ""
    years = "" if age is None else _in_words(age)
    aged = f" of {'an' if years.startswith('e') else 'a'} {years}-year-old {person}" if years else who
    seen = f" with {quality} image quality" if quality else ""
    shape = f" of {attributes.shape} shape" if attributes else ""
    choices = []
    for name, place in product(class_names, (" of the heart", " in the cardiac ultrasound")):
        viewed = f" in {view} view{place}"
        cycle = f"{viewed} at end of the {instant} cycle"
        full = cycle + aged + seen
        texts = (place, viewed, cycle, cycle + who, cycle + aged, full, shape + full)
        choices.append({f"p{number}": f"{name}{text}." for number, text in enumerate(texts, 1)})
    return _fill({"p0": "", **{key: f"{{{key}}}" for key in choices[0]}}, choices)


def compose_xray_prompts(
    class_names: Sequence[str], attributes: MaskAttributes | None, view: str, findings: Iterable[str]
) -> Prompts:
    """
    Prompts p0 to p6 for chest X-rays.

    Args:
        class_names (`Sequence[str]`): names of the finding, such as `["Cardiomegaly"]`.
        attributes ([`MaskAttributes`], *optional*): None: the mask is empty, and shape and place are left out.
        view (`str`): `"frontal"` or `"lateral"`.
        findings (`Iterable[str]`): all findings of the image.

    Returns:
        `dict[str, str | list[str]]`: as of [`compose_prompts`].
    """
    names = list(findings)
    present = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} present."
    templates = dict(XRAY_TEMPLATES)
    if attributes is None:
        templates |= {"p3": templates["p2"], "p4": templates["p2"], "p5": f"{templates['p2']} {{present}}"}
    measured = {} if attributes is None else asdict(attributes)
    return _fill(templates, [{"name": name, "view": view, "present": present, **measured} for name in class_names])


def _fill(templates: Mapping[str, str], choices: Sequence[Mapping[str, str]]) -> Prompts:
    """Each template with each choice of words: a list where they differ, and sentences with a capital letter."""
    prompts: Prompts = {}
    for key, template in templates.items():
        filled = [template.format_map(words) for words in choices]
        wordings = list(dict.fromkeys(text[0].upper() + text[1:] if text.endswith(".") else text for text in filled))
        prompts[key] = wordings if len(wordings) > 1 else wordings[0]
    return prompts


def _in_words(number: int) -> str:
    """A number below 100 in words, a larger one in digits."""
    if number >= 100:
        return str(number)
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")
