"""Prompts grow by one attribute each, as in MedVLSM's annotation files, and empty masks claim nothing measured."""

import pytest

from peft_vlsm.segmentation.prompts.attributes import MaskAttributes
from peft_vlsm.segmentation.prompts.templates import (
    compose_heart_prompts,
    compose_prompts,
    compose_tumor_prompts,
    compose_xray_prompts,
)

ATTRIBUTES = MaskAttributes(shape="oval", colour="pink", size="small", number="two", location="top, left")
ONE = MaskAttributes(shape="circle", colour="gray", size="large", number="one", location="center")


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


def test_descriptions_give_p7_to_p9():
    prompts = compose_prompts(["polyp"], ATTRIBUTES, ["a lump", "a growth"])
    assert list(prompts) == [f"p{number}" for number in range(10)]
    assert {key: prompts[key] for key in ("p7", "p8", "p9")} == {
        "p7": ["polyp which is a lump", "polyp which is a growth"],
        "p8": [f"two small pink oval polyp which is {what}" for what in ("a lump", "a growth")],
        "p9": [
            f"two small pink oval polyp which is {what} located in top, left of the image"
            for what in ("a lump", "a growth")
        ],
    }
    assert {key: prompts[key] for key in list(prompts)[:7]} == compose_prompts(["polyp"], ATTRIBUTES)


def test_empty_mask_has_name_and_description_alone():
    prompts = compose_prompts(["foot ulcer"], None, ["a wound"])
    assert prompts["p0"] == "" and list(prompts) == [f"p{number}" for number in range(10)]
    assert {prompts[f"p{number}"] for number in range(1, 7)} == {"foot ulcer"}
    assert {prompts[f"p{number}"] for number in range(7, 10)} == {"foot ulcer which is a wound"}


def test_tumors_are_counted_and_named_by_diagnosis_and_outline():
    where = "in the breast ultrasound image."
    assert compose_tumor_prompts(["benign", "regular-shaped"], ATTRIBUTES) == {
        "p0": "",
        "p1": f"Tumor {where}",
        "p2": [f"Benign tumor {where}", f"Regular-shaped tumor {where}"],
        "p3": [f"Two benign tumors {where}", f"Two regular-shaped tumors {where}"],
        "p4": [f"Two small benign tumors {where}", f"Two small regular-shaped tumors {where}"],
        "p5": [
            f"Two small benign tumors at the top, left {where}",
            f"Two small regular-shaped tumors at the top, left {where}",
        ],
        "p6": [
            f"Two small oval-shaped benign tumors at the top, left {where}",
            f"Two small oval-shaped regular tumors at the top, left {where}",
        ],
    }
    assert compose_tumor_prompts(["malignant"], ONE)["p3"] == f"One malignant tumor {where}"


def test_no_tumor_is_said_in_every_prompt():
    prompts = compose_tumor_prompts(["no"], None)
    assert list(prompts) == [f"p{number}" for number in range(7)] and prompts.pop("p0") == ""
    assert set(prompts.values()) == {"No tumor in the breast ultrasound image."}


def test_heart_prompts_add_view_instant_patient_and_shape():
    prompts = compose_heart_prompts(["Myocardium"], ONE, "four-chamber", "systole", "male", 8, "poor")
    assert prompts["p0"] == "" and list(prompts) == [f"p{number}" for number in range(8)]
    assert [prompts[f"p{number}"][0] for number in range(1, 8)] == [
        "Myocardium of the heart.",
        "Myocardium in four-chamber view of the heart.",
        "Myocardium in four-chamber view of the heart at end of the systole cycle.",
        "Myocardium in four-chamber view of the heart at end of the systole cycle of a male.",
        "Myocardium in four-chamber view of the heart at end of the systole cycle of an eight-year-old male.",
        "Myocardium in four-chamber view of the heart at end of the systole cycle of an eight-year-old male with poor "
        "image quality.",
        "Myocardium of circle shape in four-chamber view of the heart at end of the systole cycle of an "
        "eight-year-old male with poor image quality.",
    ]
    assert prompts["p2"][1] == "Myocardium in four-chamber view in the cardiac ultrasound."


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (0, "a zero-year-old"),
        (11, "an eleven-year-old"),
        (18, "an eighteen-year-old"),
        (40, "a forty-year-old"),
        (56, "a fifty-six-year-old"),
        (80, "an eighty-year-old"),
        (99, "a ninety-nine-year-old"),
        (103, "a 103-year-old"),
    ],
)
def test_ages_in_words(age, words):
    prompts = compose_heart_prompts(["Myocardium"], None, "two-chamber", "diastole", "female", age)
    assert prompts["p5"][0].endswith(f"cycle of {words} female.")


def test_what_is_not_known_of_a_patient_is_left_out():
    prompts = compose_heart_prompts(["Myocardium"], None, "two-chamber", "diastole")
    assert prompts["p3"] == prompts["p4"] == prompts["p5"] == prompts["p6"] == prompts["p7"]
    aged = compose_heart_prompts(["Myocardium"], None, "two-chamber", "diastole", age=30)
    assert aged["p5"][0].endswith("cycle of a thirty-year-old patient.")


def test_xray_prompts_add_view_shape_place_and_the_other_findings():
    assert compose_xray_prompts(["Edema"], ATTRIBUTES, "lateral", ["Edema", "Atelectasis"]) == {
        "p0": "",
        "p1": "Edema in a chest Xray.",
        "p2": "Edema in the lateral view of a Chest Xray.",
        "p3": "Edema of shape oval in the lateral view of a Chest Xray.",
        "p4": "Edema of shape oval, and located in top, left of the lateral view of a Chest Xray.",
        "p5": "Edema of shape oval, and located in top, left of the lateral view of a Chest Xray. Edema, Atelectasis "
        "are present.",
        "p6": "Edema in a Chest Xray. Edema, Atelectasis are present.",
    }


def test_xray_prompts_of_an_empty_mask_have_no_shape_and_no_place():
    prompts = compose_xray_prompts(["Edema"], None, "frontal", ["Edema"])
    assert prompts["p2"] == prompts["p3"] == prompts["p4"] == "Edema in the frontal view of a Chest Xray."
    assert prompts["p5"] == "Edema in the frontal view of a Chest Xray. Edema is present."
