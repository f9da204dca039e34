"""Prompts p0 to p6 grow by one attribute each, as in MedVLSM's annotation files."""

from peft_vlsm.segmentation.attributes import MaskAttributes
from peft_vlsm.segmentation.prompt_templates import compose_prompts

ATTRIBUTES = MaskAttributes(shape="oval", colour="pink", size="small", number="two", location="top, left")


def test_one_name_gives_strings():
    assert compose_prompts(["polyp"], ATTRIBUTES) == {
        "p0": "",
        "p1": "polyp",
        "p2": "oval polyp",
        "p3": "pink oval polyp",
        "p4": "small pink oval polyp",
        "p5": "two small pink oval polyp",
        "p6": "two small pink oval polyp, located in top, left of the image",
    }


def test_several_names_give_lists_and_p0_stays_empty():
    prompts = compose_prompts(["tumor", "lesion"], ATTRIBUTES)
    assert prompts["p0"] == ""
    assert prompts["p1"] == ["tumor", "lesion"]
    assert prompts["p6"] == [
        f"two small pink oval {name}, located in top, left of the image" for name in ("tumor", "lesion")
    ]
