"""
Whether a mask's pixels are black and white, as far as can be told from their grey levels.

Grey is what lies well between 0 and 255. Edges may be grey: JPEG blurs them, and so does a mask that was resized with
smoothing. A mask whose object is mostly grey is none, and neither is one with an area of a single grey (several
classes in one file).
"""

from typing import Any

import numpy as np

from peft_vlsm.segmentation.errors import InputError

DARKEST_GREY, BRIGHTEST_GREY = 32, 223
LARGEST_GREY_SHARE = 0.5
# A single grey that fills so much of the object, and so many pixels, is no edge.
LARGEST_SINGLE_SHARE, FEWEST_PIXELS_OF_A_CLASS = 0.125, 16


def check_levels(name: Any, grey: np.ndarray, lossy: bool) -> None:
    """
    Refuses a mask that is not black and white.

    Args:
        name (`Any`): what the message calls the mask.
        grey (`np.ndarray` of shape `(height, width)`): levels from 0 to 255.
        lossy (`bool`): the file's format changes levels (JPEG). A dark mask is then noise on an empty one, and areas
            of one grey are not looked for.

    Raises:
        InputError: nothing is brighter than half, more than half of what is not black is grey, or an area has one
            grey.
    """
    brightest = int(grey.max())
    if brightest < 128:
        if brightest and not lossy:
            raise InputError(f"{name}: the brightest pixel of this mask is {brightest}; masks hold 0 and 255")
        return
    counts = np.bincount(grey.reshape(-1), minlength=256)
    greys, marked = counts[DARKEST_GREY : BRIGHTEST_GREY + 1], counts[DARKEST_GREY:].sum()
    level = DARKEST_GREY + int(greys.argmax())
    is_class = greys.max() >= FEWEST_PIXELS_OF_A_CLASS and greys.max() > LARGEST_SINGLE_SHARE * marked
    if greys.sum() > LARGEST_GREY_SHARE * marked or (is_class and not lossy):
        raise InputError(
            f"{name}: {greys.sum()} of the {marked} pixels of this mask that are not black are grey ({level} most "
            "often); masks hold 0 and 255: threshold it, or save a mask for each class"
        )
