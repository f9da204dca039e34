"""Adapters beside each other on data sets: scores of each pair summed up, as tables, as a matrix and as files."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.evaluation.bootstrap import bootstrap_interval
from peft_vlsm.segmentation.evaluation.metrics import SCORES
from peft_vlsm.segmentation.evaluation.scoring import Case, prompt_number


@dataclass(frozen=True)
class Result:
    """
    One adapter on one data set.

    Args:
        adapter (`str`): the adapter's name.
        data (`str`): the data set's name.
        cases (`list[Case]`): at least one.
        scores (`dict[str, np.ndarray]`): of [`score_cases`], in the cases' order.
    """

    adapter: str
    data: str
    cases: list[Case]
    scores: dict[str, np.ndarray]

    def of_prompt(self, key: str) -> "Result":
        """The cases with this prompt alone; perhaps none."""
        places = [place for place, case in enumerate(self.cases) if case.key == key]
        scores = {name: values[places] for name, values in self.scores.items()}
        return Result(self.adapter, self.data, [self.cases[place] for place in places], scores)

    def rows(self) -> list[dict[str, Any]]:
        """A table's row for each case."""
        columns = {name: values.tolist() for name, values in self.scores.items()}
        return [
            {
                **{"adapter": self.adapter, "data": self.data, "row": case.row.index, "image": case.image},
                **{"prompt": case.key, "text": case.prompt},
                **{name: values[place] for name, values in columns.items()},
            }
            for place, case in enumerate(self.cases)
        ]


def summarise(result: Result, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """
    Sums up the scores of an adapter on a data set.

    Args:
        result ([`Result`]): the scores.
        resamples (`int`, defaults to 1000): of the bootstrap over images; see [`bootstrap_interval`].
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `dict[str, Any]`: `images` and `cases` (their numbers), `one_empty` (cases in which one of both masks alone is
        empty), and of each score the mean over cases under its name, then `_std`, and `_low` and `_high`: the ends of
        the mean's 95 % confidence interval, not a number where there is one image only.
    """
    images = [case.image for case in result.cases]
    one_empty = (result.scores["predicted_pixels"] == 0) != (result.scores["true_pixels"] == 0)
    summary: dict[str, Any] = {"images": len(set(images)), "cases": len(images), "one_empty": int(one_empty.sum())}
    for name in SCORES:
        values = result.scores[name]
        low, high = bootstrap_interval(values, images, resamples, seed)
        summary |= {name: float(values.mean()), f"{name}_std": float(values.std())}
        summary |= {f"{name}_low": low, f"{name}_high": high}
    return summary


@dataclass(frozen=True)
class Comparison:
    """
    Tables of all results.

    Args:
        matrix (`list[dict[str, Any]]`): a row for each adapter on each data set: `adapter`, `data`, and what
            [`summarise`] gives.
        prompts (`list[dict[str, Any]]`): a row for each of their prompts, with `prompt` besides.
    """

    matrix: list[dict[str, Any]]
    prompts: list[dict[str, Any]]

    @classmethod
    def of(cls, results: Sequence[Result], resamples: int = 1000, seed: int = 0) -> "Comparison":
        """Sums up results; see [`summarise`]."""
        matrix, prompts = [], []
        for result in results:
            names = {"adapter": result.adapter, "data": result.data}
            matrix.append({**names, **summarise(result, resamples, seed)})
            for key in sorted({case.key for case in result.cases}, key=prompt_number):
                prompts.append({**names, "prompt": key, **summarise(result.of_prompt(key), resamples, seed)})
        return cls(matrix, prompts)

    def matrix_fields(self) -> tuple[np.ndarray, list[str], list[str]]:
        """Mean Dice of shape `(adapters, data sets)`, and what rows and columns are called; for [`heat_map`]."""
        return _fields(self.matrix, lambda row: row["adapter"], lambda row: row["data"])

    def prompt_fields(self) -> tuple[np.ndarray, list[str], list[str]]:
        """Mean Dice of shape `(adapters times data sets, prompts)`, not a number where a data set lacks a prompt."""
        values, rows, columns = _fields(
            self.prompts, lambda row: f"{row['adapter']} on {row['data']}", lambda row: row["prompt"]
        )
        order = sorted(range(len(columns)), key=lambda place: prompt_number(columns[place]))
        return values[:, order], rows, [columns[place] for place in order]

    def text(self) -> str:
        """What a terminal shows: a line for each adapter on each data set, then Dice by prompt."""
        lines = [["adapter", "data", "images", "Dice [95 % interval]", "IoU", "precision", "recall", "HD95 (pixels)"]]
        for row in self.matrix:
            interval = "" if math.isnan(row["dice_low"]) else f" [{row['dice_low']:.3f}, {row['dice_high']:.3f}]"
            means = [f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}" for name in SCORES[1:-1]]
            dice = f"{row['dice']:.3f} ± {row['dice_std']:.3f}{interval}"
            distance = f"{row['hd95']:.2f} ± {row['hd95_std']:.2f}"
            lines.append([row["adapter"], row["data"], str(row["images"]), dice, *means, distance])
        values, rows, columns = self.prompt_fields()
        by_prompt = [["Dice by prompt", *columns]]
        for name, numbers in zip(rows, values, strict=True):
            by_prompt.append([name, *("-" if np.isnan(number) else f"{number:.3f}" for number in numbers)])
        return f"{_aligned(lines)}\n\n{_aligned(by_prompt)}"


def write_tables(folder: Path, settings: dict[str, Any], results: Sequence[Result], comparison: Comparison) -> None:
    """
    Writes `matrix.csv`, `per_prompt.csv`, `per_image.csv`, and all three with the settings as `results.json`.

    Args:
        folder (`Path`): exists.
        settings (`dict[str, Any]`): what json takes: how the results were made.
        results (`Sequence[Result]`): the scores of every image and prompt.
        comparison ([`Comparison`]): their tables. A bound that is not a number becomes null, in CSV an empty field.
    """
    per_image = [row for result in results for row in result.rows()]
    tables = {"matrix": comparison.matrix, "per_prompt": comparison.prompts, "per_image": per_image}
    known = {name: [_without_nan(row) for row in rows] for name, rows in tables.items()}
    for name, rows in known.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    text = json.dumps({"settings": settings, **known}, indent=2, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def distinct_names(paths: Iterable[str]) -> list[str]:
    """
    Short names for folders: the last part of each path, with as many parts before it as tell it from the others.

    Args:
        paths (`Iterable[str]`): at least one folder, or name on the Hub.

    Returns:
        `list[str]`: in the same order.

    Raises:
        InputError: two of them are the same.
    """
    given = list(paths)
    parts = [PurePath(Path(path).resolve() if Path(path).exists() else path).parts for path in given]
    for place, path in enumerate(given):
        if parts[place] in parts[:place]:
            raise InputError(f"{path} is given twice; leave one out")
    return [_shortest_end(each, [other for other in parts if other is not each]) for each in parts]


def _shortest_end(path: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    for length in range(1, len(path)):
        if all(other[-length:] != path[-length:] for other in others):
            return str(PurePath(*path[-length:]))
    return str(PurePath(*path))


def _fields(rows: list[dict[str, Any]], row_name, column_name) -> tuple[np.ndarray, list[str], list[str]]:
    names, columns = (list(dict.fromkeys(map(name, rows))) for name in (row_name, column_name))
    values = np.full((len(names), len(columns)), np.nan)
    for row in rows:
        values[names.index(row_name(row)), columns.index(column_name(row))] = row["dice"]
    return values, names, columns


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
