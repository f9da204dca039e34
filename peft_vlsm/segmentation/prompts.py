"""
Which of a row's prompts is taken: a random one at every training step, always the same one in evaluation.

What is drawn follows from the seed, the epoch and the row alone. The number of processes and workers, the order of
rows and a resumed run therefore change nothing.
"""

import numpy as np

from peft_vlsm.segmentation.annotations import AnnotationRow


def random_prompt(row: AnnotationRow, seed: int, epoch: int) -> str:
    """
    Draws the prompt of a training step: a key uniformly, then one of its strings uniformly. `p0` is never drawn.

    Args:
        row ([`AnnotationRow`]): the row.
        seed (`int`): the run's seed, not negative.
        epoch (`int`): the epoch, counted from 0.

    Returns:
        `str`: the prompt, the same one for the same row index, seed and epoch.
    """
    generator = np.random.default_rng((seed, epoch, row.index))
    texts = list(row.prompts.values())[generator.integers(len(row.prompts))]
    return texts[generator.integers(len(texts))]


def evaluation_prompt(row: AnnotationRow) -> str:
    """
    The prompt that evaluation takes: the first string of the key with the highest number. In the MedVLSM files
    prompts gain attributes with their number, so this is the most informative one.
    """
    return list(row.prompts.values())[-1][0]
