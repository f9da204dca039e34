"""Random prompts follow from seed, epoch and row alone; evaluation's are fixed; the user may name one."""

from collections import Counter
from pathlib import Path

import pytest

from peft_vlsm.segmentation.data.annotations import AnnotationRow
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prompts.choice import check_prompt_choice, choose_prompt, evaluation_prompt, random_prompt

PROMPTS = {"p1": ["a"], "p2": ["b", "c"], "p10": ["d", "e", "f", "g"]}


def _row(index):
    return AnnotationRow(index, Path("image.png"), Path("mask.png"), PROMPTS)


def test_a_key_is_drawn_uniformly_then_one_of_its_strings():
    draws = 12_000
    counts = Counter(random_prompt(_row(index), seed=42, epoch=0) for index in range(draws))
    expected = {"a": 1 / 3, "b": 1 / 6, "c": 1 / 6, **dict.fromkeys("defg", 1 / 12)}
    assert counts.keys() == expected.keys()
    for text, share in expected.items():
        assert abs(counts[text] / draws - share) < 0.02


def test_the_draw_depends_on_seed_epoch_and_row():
    def draws(seed, epoch, first):
        return [random_prompt(_row(index), seed, epoch) for index in range(first, first + 50)]

    assert draws(42, 0, 0) == draws(42, 0, 0)
    assert draws(42, 0, 0)[10:] == draws(42, 0, 10)[:40]
    different = {tuple(draws(*case)) for case in ((42, 0, 0), (43, 0, 0), (42, 1, 0), (0, 42, 0), (42, 0, 1))}
    assert len(different) == 5


def test_the_draws_themselves_are_pinned():
    assert (
        "".join(random_prompt(_row(index), seed=7, epoch=3) for index in range(30)) == "gfcadbdeegfbabbcbcdabgedcaceca"
    )


def test_evaluation_takes_the_first_string_of_the_highest_number():
    assert evaluation_prompt(_row(0)) == evaluation_prompt(_row(5)) == "d"


@pytest.mark.parametrize(
    "choice, seed, prompts", [("p0", None, {""}), ("p2", None, {"b"}), ("p2", 7, {"b", "c"}), ("random", None, {"d"})]
)
def test_a_named_prompt_is_taken(choice, seed, prompts):
    assert {choose_prompt(_row(index), choice, seed, epoch=0) for index in range(20)} == prompts


def test_random_is_what_it_always_was():
    rows = [_row(index) for index in range(30)]
    assert [choose_prompt(row, "random", 7, 3) for row in rows] == [random_prompt(row, 7, 3) for row in rows]


def test_a_row_without_the_named_prompt_is_named():
    with pytest.raises(InputError, match="image.png has no prompt p3; it has p1, p2, p10"):
        choose_prompt(_row(0), "p3", None, 0)


@pytest.mark.parametrize("choice", ["", "p", "p01", "p-1", "P1", "Random", "p1 "])
def test_an_unknown_choice_is_named(choice):
    with pytest.raises(InputError, match="give random, or one of p0 to p9"):
        check_prompt_choice(choice)
