"""OUT/samples.png: some images with their masks laid over them, and the richest prompt of each."""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from peft_vlsm.segmentation.pictures import TRUE_COLOR, overlay

COLUMNS, ROWS = 4, 3
CELL = 360


@dataclass
class Overview:
    """
    Collects cells while a data set is written, and draws them.

    Args:
        count (`int`): of the data set's rows.
    """

    count: int
    _seen: int = 0
    _cells: list[tuple[Image.Image, str]] = field(default_factory=list)

    def add(self, image: np.ndarray, mask: np.ndarray, title: str) -> None:
        """Keeps every so many of the rows, which come one after another."""
        step = max(1, self.count // (COLUMNS * ROWS))
        place = len(self._cells)
        # Each time one row further on: the rows of an image, one a class, take turns.
        if place < COLUMNS * ROWS and self._seen == place * step + place % step:
            picture = overlay(Image.fromarray(image), mask, TRUE_COLOR)
            self._cells.append((ImageOps.contain(picture, (CELL, CELL)), title))
        self._seen += 1

    def save(self, path: Path) -> None:
        """Writes the picture."""
        rows = -(-len(self._cells) // COLUMNS)
        figure = Figure(figsize=(3.6 * COLUMNS, 4.2 * rows))
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.15 / rows, wspace=0.03, hspace=0.25)
        for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
            axes.axis("off")
        for axes, (picture, title) in zip(figure.axes, self._cells, strict=False):
            axes.imshow(picture)
            # Prompts are text, in which a dollar sign is no formula.
            axes.set_title(fill(title, 46), fontsize=8, parse_math=False)
        figure.savefig(path, dpi=72)
