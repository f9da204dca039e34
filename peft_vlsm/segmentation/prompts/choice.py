"""
Which of a row's prompts is taken: a random one at every training step, always the same one in evaluation, or the one
that the user names.

What is drawn follows from the seed, the epoch and the row alone. The number of processes and workers, the order of
rows and a resumed run therefore change nothing.
"""

import re
from collections.abc import Mapping

import numpy as np

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.rows import EMPTY_PROMPT, Row

RANDOM = "random"


def check_prompt_choice(choice: str) -> None:
    """
    Checks the value of `--prompt`.

    Raises:
        InputError: it is neither `"random"` nor `"p0"`, `"p1"`, ...
    """
    if choice != RANDOM and not re.fullmatch(r"p(0|[1-9][0-9]{0,3})", choice):
        raise InputError(f"--prompt {choice} is unknown; give random, or one of p0 to p9 (p0 is the empty prompt)")


def choose_prompt(row: Row, choice: str, seed: int | None, epoch: int) -> str:
    """
    Takes the prompt that the user's choice means for a row.

    Args:
        row ([`Row`]): the row.
        choice (`str`): `"random"`, or a key: `"p0"` is the empty prompt.
        seed (`int`, *optional*): given (training), strings are drawn: see [`random_prompt`]. Else (evaluation) the
            first string of the key is taken, `"random"` meaning the key of [`evaluation_prompt`].
        epoch (`int`): the epoch, counted from 0.

    Returns:
        `str`: the prompt.

    Raises:
        InputError: the row has no such key.
    """
    if choice == EMPTY_PROMPT:
        return ""
    if choice == RANDOM:
        return evaluation_prompt(row) if seed is None else random_prompt(row, seed, epoch)
    if choice not in row.prompts:
        raise InputError(f"{row.name} has no prompt {choice}; it has {', '.join(row.prompts)} (--prompt)")
    return row.prompts[choice][0] if seed is None else _draw({choice: row.prompts[choice]}, (seed, epoch, row.index))


def random_prompt(row: Row, seed: int, epoch: int) -> str:
    """
    Draws the prompt of a training step: a key uniformly, then one of its strings uniformly. `p0` is never drawn.

    Args:
        row ([`Row`]): the row.
        seed (`int`): the run's seed, not negative.
        epoch (`int`): the epoch, counted from 0.

    Returns:
        `str`: the prompt, the same one for the same row index, seed and epoch.
    """
    return _draw(row.prompts, (seed, epoch, row.index))


def evaluation_prompt(row: Row) -> str:
    """
    The prompt that evaluation takes: the first string of the key with the highest number. In the MedVLSM files
    prompts gain attributes with their number, so this is the most informative one.
    """
    return list(row.prompts.values())[-1][0]


def _draw(prompts: Mapping[str, list[str]], seeds: tuple[int, int, int]) -> str:
    generator = np.random.default_rng(seeds)
    texts = list(prompts.values())[generator.integers(len(prompts))]
    return texts[generator.integers(len(texts))]
