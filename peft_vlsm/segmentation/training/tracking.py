"""The record of a run: a JSON line for each thing measured, and a picture of the curves."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers, on_main_process
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from peft_vlsm.segmentation.errors import InputError

LOG = "log.jsonl"
PROJECT = "peft_vlsm"
# In the order in which they start: where wandb cannot, the others have written nothing yet.
TRACKERS = ("wandb", "trackio", "tensorboard")


class JsonlTracker(GeneralTracker):
    """
    A tracker for accelerate that needs no service: appends to `log.jsonl`, and puts pictures into `samples/`.

    Args:
        folder (`Path`): the run's output folder.
        resumed_step (`int`, defaults to 0): lines of later steps, which a resumed run measures again, are dropped.
        validates_again (`bool`, defaults to `False`): whether it also validates that step again.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: Path, resumed_step: int = 0, validates_again: bool = False):
        super().__init__()
        self.folder = folder
        self.resumed_step = resumed_step
        self.validates_again = validates_again

    @on_main_process
    def start(self) -> None:
        """Keeps of an earlier log what a resumed run has behind it."""
        if not self.tracker.exists():
            # A run that ends before its first step leaves an empty folder, which the next run takes.
            return
        kept = [line for line in read_log(self.folder) if self._is_kept(line)]
        staging = self.folder / f".{LOG}.partial"
        staging.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(staging, self.folder / LOG)

    def _is_kept(self, line: dict[str, Any]) -> bool:
        again = self.validates_again and "val_loss" in line
        return line["step"] < self.resumed_step or (line["step"] == self.resumed_step and not again)

    @property
    def tracker(self) -> Path:
        return self.folder / LOG

    def store_init_configuration(self, values: dict) -> None:
        """The settings stand in `all_results.json`."""

    @on_main_process
    def log(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, values: dict, step: int | None = None
    ) -> None:
        """Appends a line with the step and the values."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @on_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        """Writes each picture (PIL) as `samples/NAME_STEP.png`."""
        (self.folder / "samples").mkdir(exist_ok=True)
        for name, picture in values.items():
            picture.save(self.folder / "samples" / f"{name}_{step}.png")


def make_trackers(with_tracking: bool, report_to: str | None) -> list[str]:
    """
    The trackers that a user asks for beside the log.

    Args:
        with_tracking (`bool`): whether there are any.
        report_to (`str`, *optional*): names, with commas between them. Default: tensorboard.

    Returns:
        `list[str]`: names for [`~accelerate.Accelerator`]; a [`JsonlTracker`] goes after them.

    Raises:
        InputError: a tracker is unknown, or its package is not installed.
    """
    if not with_tracking:
        return []
    names = [name.strip() for name in ("tensorboard" if report_to is None else report_to).split(",")]
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--report_to {name} is unknown; allowed: {', '.join(TRACKERS)}")
        if name not in map(str, get_available_trackers()):
            raise InputError(f"--report_to {name}: its package is missing; pip install {name}")
    return [name for name in TRACKERS if name in names]


def start_trackers(accelerator: Accelerator, settings: dict[str, Any], resumed_step: int) -> None:
    """
    Starts the trackers that an accelerator was made with, each with a new run; steps go on from the resumed one.

    Args:
        accelerator (`Accelerator`): made with the names of [`make_trackers`] and a [`JsonlTracker`].
        settings (`dict`): what the trackers show as the run's configuration.
        resumed_step (`int`): tensorboard drops later steps of its earlier files; 0 drops them all.

    Raises:
        InputError: a tracker cannot start, for instance since wandb has no key or does not reach its service.
    """
    try:
        # What tensorboard wrote into this folder before would otherwise show beside the new run.
        accelerator.init_trackers(PROJECT, settings, {"tensorboard": {"purge_step": resumed_step + 1}})
    except Exception as error:  # Each package raises errors of its own.
        names = [tracker.name for tracker in accelerator.trackers if tracker.name != JsonlTracker.name]
        if not names:
            raise
        hint = "; WANDB_MODE=offline needs neither key nor network" if "wandb" in names else ""
        raise InputError(f"--report_to {','.join(names)} cannot be started: {str(error).rstrip('.')}{hint}") from error


def log_picture(accelerator: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """Gives a picture to every tracker, in the form that each takes."""
    for tracker in accelerator.trackers:
        if tracker.name == JsonlTracker.name:
            tracker.log_images({name: picture}, step=step)
        elif tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "trackio":
            # accelerate's tracker for trackio has no log_images.
            from trackio import Image as TrackioImage  # pyright: ignore[reportMissingImports]

            tracker.log({name: TrackioImage(picture)}, step=step)
        else:
            tracker.log_images({name: [picture]}, step=step)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was cut off is left out."""
    if not (folder / LOG).exists():
        return []
    lines = []
    for text in (folder / LOG).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def holds_a_begun_run(folder: Path) -> bool:
    """Whether a folder holds what a run leaves that was killed before its first checkpoint, and not other files."""
    if (folder / LOG).is_file():
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
        return not text or text.startswith('{"step"')
    # tensorboard's folder, or a checkpoint that was being written.
    return all(entry.name == PROJECT or entry.name.startswith(".") for entry in folder.iterdir())


def draw_curves(lines: list[dict[str, Any]]) -> Image.Image:
    """
    Draws loss, validation figures and learning rate over the steps.

    Args:
        lines (`list[dict]`): of [`read_log`].

    Returns:
        `PIL.Image.Image`: three charts side by side.
    """
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    charts = figure.subplots(1, 3)
    panels = (("loss", ("train_loss", "val_loss")), ("validation", ("val_dice", "val_iou")), ("", ("learning_rate",)))
    for chart, (title, names) in zip(charts, panels, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            steps, values = zip(*points, strict=True) if points else ((), ())
            chart.plot(steps, values, label=name.replace("_", " "), marker="." if len(points) < 30 else None)
        chart.set_title(title)
        chart.set_xlabel("step")
        chart.legend()
        chart.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
