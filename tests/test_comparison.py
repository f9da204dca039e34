"""Names of folders, and the tables of results."""

from pathlib import Path

import numpy as np
import pytest

from peft_vlsm.segmentation.data.annotations import AnnotationRow
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.evaluation.comparison import Comparison, Result, distinct_names, summarise
from peft_vlsm.segmentation.evaluation.scoring import Case, list_cases

NAMES = {
    "last parts": (["x/a", "y/b"], ["a", "b"]),
    "same last part": (["x/a", "y/a", "y/b"], ["x/a", "y/a", "b"]),
    "same last parts": (["p/x/a", "q/x/a"], ["p/x/a", "q/x/a"]),
    "one is the end of another": (["a", "x/a"], ["a", "x/a"]),
    "Hub": (["anna/polyps", "bert/polyps", "anna/lungs"], ["anna/polyps", "bert/polyps", "lungs"]),
    "slash at the end": (["x/a/"], ["a"]),
}


@pytest.mark.parametrize("paths, names", NAMES.values(), ids=NAMES)
def test_names(tmp_path, monkeypatch, paths, names):
    monkeypatch.chdir(tmp_path)
    assert distinct_names(paths) == names
    for path in paths:
        Path(path).mkdir(parents=True, exist_ok=True)
    assert [name.rsplit("/", 1)[-1] for name in distinct_names(paths)] == [name.rsplit("/", 1)[-1] for name in names]
    assert len(set(distinct_names(paths))) == len(paths)


@pytest.mark.parametrize("again", ["a", "./a", "a/", "link"])
def test_one_folder_by_two_names_is_given_twice(tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("link").symlink_to("a")
    with pytest.raises(InputError, match="is given twice"):
        distinct_names(["a", again])


def _row(index, image, *keys):
    return AnnotationRow(index, Path(image), Path("mask.png"), {key: [f"text of {key}", "another"] for key in keys})


ROWS = [_row(0, "a.png", "p1", "p2", "p10"), _row(1, "b.png", "p1")]


def test_cases_are_every_row_with_its_prompts():
    cases = [(case.row.index, case.key, case.prompt) for case in list_cases(ROWS)]
    assert cases == [(0, key, f"text of {key}") for key in ("p1", "p2", "p10")] + [(1, "p1", "text of p1")]


def test_cases_of_some_prompts():
    cases = [(case.row.index, case.key, case.prompt) for case in list_cases(ROWS, ["p2", "p0"])]
    assert cases == [(0, "p2", "text of p2"), (0, "p0", ""), (1, "p0", "")]


def test_cases_of_the_prompt_that_training_evaluates_with():
    cases = [(case.row.index, case.key, case.prompt) for case in list_cases(ROWS, ["random"])]
    assert cases == [(0, "p10", "text of p10"), (1, "p1", "text of p1")]


def test_one_prompt_for_all_rows():
    cases = list_cases(ROWS, override_prompt="a thing")
    assert [(case.row.index, case.key, case.prompt) for case in cases] == [(n, "override", "a thing") for n in (0, 1)]
    comparison = Comparison.of([_result("a", [0.25, 0.75], cases)], resamples=20)
    values, _, columns = comparison.prompt_fields()
    assert columns == ["override"] and values.tolist() == [[0.5]]


def test_a_prompt_that_no_row_has():
    with pytest.raises(InputError, match="--prompt p3: no row has this prompt; rows have p1, p2, p10"):
        list_cases(ROWS, ["p1", "p3"])


def _result(name, dice, cases):
    dice = np.array(dice)
    scores = {score: dice for score in ("dice", "iou", "precision", "recall")}
    pixels = {"predicted_pixels": (dice > 0).astype(int), "true_pixels": np.ones(len(dice), int)}
    return Result(name, "data", cases, {**scores, "hd95": 10 * dice, **pixels})


def test_several_masks_of_one_image_are_drawn_together():
    rows = [_row(index, f"{index // 2}.png", "p1") for index in range(6)]
    cases = list_cases(rows)
    summary = summarise(_result("a", [0.0, 0.0, 0.5, 0.5, 1.0, 1.0], cases))
    apart = summarise(
        _result("a", [0.0, 0.0, 0.5, 0.5, 1.0, 1.0], list_cases([_row(i, f"{i}.png", "p1") for i in range(6)]))
    )
    assert (summary["images"], summary["cases"], summary["one_empty"]) == (3, 6, 2)
    assert summary["hd95"] == pytest.approx(5.0) and summary["dice_std"] == pytest.approx(np.sqrt(1 / 6))
    assert summary["dice_high"] - summary["dice_low"] > apart["dice_high"] - apart["dice_low"]


def test_prompts_stand_in_the_order_of_their_numbers_with_gaps():
    first = _result("a", [0.1, 0.2, 0.3, 0.4], list_cases(ROWS))
    second = _result("b", [0.5], [Case(ROWS[0], "p2", "text")])
    comparison = Comparison.of([first, second], resamples=20)
    values, rows, columns = comparison.prompt_fields()
    assert (rows, columns) == (["a on data", "b on data"], ["p1", "p2", "p10"])
    np.testing.assert_allclose(values, [[0.25, 0.2, 0.3], [np.nan, 0.5, np.nan]])
    assert comparison.text().splitlines()[-1].split() == ["b", "on", "data", "-", "0.500", "-"]
    fields = comparison.matrix_fields()
    assert fields[0].tolist() == [[pytest.approx(0.25)], [0.5]] and fields[1:] == (["a", "b"], ["data"])


def test_intervals_of_a_prompt_are_drawn_as_those_of_all():
    """By the same number of draws, from the same seed."""
    rows = [_row(index, f"{index}.png", "p1", "p2") for index in range(8)]
    result = _result("a", np.linspace(0, 1, 16), list_cases(rows))
    comparison = Comparison.of([result], resamples=30, seed=3)
    for row in comparison.prompts:
        expected = summarise(result.of_prompt(row["prompt"]), resamples=30, seed=3)
        assert {name: row[name] for name in expected} == expected
        assert row["dice_low"] != summarise(result.of_prompt(row["prompt"]), resamples=30)["dice_low"]
