"""
Checkpoints of a run, from which it goes on as if it had never stopped.

| in `step_N` | what |
| --- | --- |
| what was trained, the processor | as in an output folder, so that a checkpoint can be used like one |
| `optimizer.bin`, `random_states_*.pkl`, `scaler.pt` | by accelerate; loaded with `weights_only=True` |
| `optimizer_0/` or `pytorch_model/` in place of `optimizer.bin` | with FSDP2's sharded states, with DeepSpeed |
| `best.safetensors` | the trained weights of the best epoch so far |
| `progress.json` | the place in the data, the scheduler, the best figures, the run's settings |
| `stream_*.json` | the place in a streamed data set, one a process |
| `files.json` | size and SHA-256 of all the others: without it a checkpoint is only half written |

The base model is not in there. A checkpoint is written beside its place and renamed.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.adapter_files import load_weights
from peft_vlsm.segmentation.models.finetuned import WEIGHT_FILES, save_weights
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.sources.streaming import StreamingLoader
from peft_vlsm.segmentation.training.sharding import PreparedRun

_UNLOADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, pickle.UnpicklingError)
_NAME = re.compile(r"step_([0-9]+)")
_FILES, _PROGRESS, _BEST = "files.json", "progress.json", "best.safetensors"


@dataclass
class Progress:
    """
    How far a run has come.

    Args:
        step (`int`): optimizer steps done.
        epoch (`int`): epochs done.
        epoch_step (`int`): optimizer steps done in the current epoch.
        best (`dict[str, float]`): the validation figures of the best epoch.
        stopping_dice (`float`): what the next epochs are compared with.
        epochs_without_gain (`int`): since then.
        train_seconds (`float`): time spent in training and validation.
        scheduler (`dict`): the learning rate's state.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    best: dict[str, float] = field(default_factory=lambda: {"dice": -1.0})
    stopping_dice: float = -1.0
    epochs_without_gain: int = 0
    train_seconds: float = 0.0
    scheduler: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """
    Writes and reads the checkpoints of one run.

    Args:
        folder (`Path`): the run's output folder.
        run ([`PreparedRun`]): model and optimizer.
        processor ([`Processor`]): as training uses it.
        settings (`dict[str, Any]`): of the run, see [`load_weights_and_progress`].
        limit (`int`, *optional*): older checkpoints beyond this number are removed.
        stream ([`StreamingLoader`], *optional*): the training rows, where they are streamed.
    """

    def __init__(
        self,
        folder: Path,
        run: PreparedRun,
        processor: Processor,
        settings: dict[str, Any],
        limit: int | None,
        stream: StreamingLoader | None = None,
    ):
        self.folder = folder
        self.run = run
        self.accelerator = run.accelerator
        self.processor = processor
        self.settings = settings
        self.limit = limit
        self.stream = stream
        self.saved_step: int | None = None

    def save(self, progress: Progress, best_weights: dict[str, torch.Tensor]) -> None:
        """
        Writes `step_N`; all processes call it.

        Raises:
            InputError: it cannot be written; the checkpoints before it are left as they are.
        """
        if self.saved_step == progress.step:
            return
        target = self.folder / f"step_{progress.step}"
        staging = self.folder / f".step_{progress.step}.partial"
        main = self.accelerator.is_main_process
        weights = self.run.weights_to_save()
        try:
            if main:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
            self.accelerator.wait_for_everyone()
            self.run.save_states(staging)
            if self.stream is not None:
                self._place(staging).write_text(json.dumps(self.stream.state_dict()), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if main:
                self._write_rest(staging, progress, best_weights, weights)
                _put_in_place(staging, target)
                self._prune(target)
        # torch and safetensors have errors of their own for a disk that is full.
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise InputError(f"the checkpoint {target} cannot be written: {error}; free space there") from error
        self.saved_step = progress.step
        self.accelerator.wait_for_everyone()

    def _place(self, checkpoint: Path) -> Path:
        return checkpoint / f"stream_{self.accelerator.process_index}.json"

    def _write_rest(
        self,
        staging: Path,
        progress: Progress,
        best_weights: dict[str, torch.Tensor],
        weights: dict[str, torch.Tensor],
    ) -> None:
        save_weights(self.run.bare_model, staging, weights)
        self.processor.save_pretrained(staging)
        if best_weights:
            save_file(best_weights, staging / _BEST)
        content = {"progress": asdict(progress), "settings": self.settings}
        (staging / _PROGRESS).write_text(json.dumps(content, indent=2), encoding="utf-8")
        files = sorted(file for file in staging.rglob("*") if file.is_file())
        written = {file.relative_to(staging).as_posix(): _describe(file) for file in files}
        (staging / _FILES).write_text(json.dumps(written, indent=2), encoding="utf-8")

    def _prune(self, newest: Path) -> None:
        """A damaged checkpoint of a later step may stand beside the one that was just written."""
        if self.limit is not None:
            others = [entry for entry in own_checkpoints(self.folder) if entry != newest]
            for old in others[self.limit - 1 :]:
                shutil.rmtree(old)

    def load_states(self, checkpoint: Path, progress: Progress) -> None:
        """
        Puts the optimizer's and the random states back, and the place in a stream.

        Args:
            checkpoint (`Path`): of which [`load_weights_and_progress`] read the rest before the model was prepared.
            progress ([`Progress`]): that it gave.

        Raises:
            InputError: they do not fit the run.
        """
        with _no_traceback(checkpoint):
            self.run.load_states(checkpoint)
            if self.stream is not None:
                self.stream.load_state_dict(json.loads(self._place(checkpoint).read_text(encoding="utf-8")))
        # accelerate counts micro-batches, of which the resumed run may have another number a step.
        self.accelerator.step = progress.step * self.accelerator.gradient_accumulation_steps
        self.saved_step = progress.step


def load_weights_and_progress(
    checkpoint: Path, model: torch.nn.Module, settings: dict[str, Any]
) -> tuple[Progress, dict[str, torch.Tensor]]:
    """
    Puts the weights of a checkpoint into a model that accelerate has not prepared yet.

    Args:
        checkpoint (`Path`): whole, see [`find_checkpoint`].
        model (`torch.nn.Module`): bare, with `requires_grad` at what trains.
        settings (`dict[str, Any]`): of the run; another run's checkpoint is refused where they differ.

    Returns:
        `tuple[Progress, dict[str, torch.Tensor]]`: how far the run had come, and its best weights.

    Raises:
        InputError: it is of a run with other settings, or does not fit the model.
    """
    with _no_traceback(checkpoint):
        content = json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))
        progress = Progress(**content["progress"])
        _compare(checkpoint, settings, content["settings"])
        _load_weights(checkpoint, model)
        best = load_weights(checkpoint, _BEST) if (checkpoint / _BEST).exists() else {}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if best and best.keys() != trained:
        raise InputError(f"--resume_from_checkpoint {checkpoint} is damaged: {_BEST} holds other weights than train")
    return progress, best


@contextmanager
def _no_traceback(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _UNLOADABLE as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"--resume_from_checkpoint {checkpoint} cannot be loaded: {reason}") from error


def _compare(checkpoint: Path, settings: dict[str, Any], stored: dict[str, Any]) -> None:
    for name, value in settings.items():
        if stored.get(name) != value:
            raise InputError(
                f"--resume_from_checkpoint {checkpoint} is of a run with {name} {stored.get(name)}, and this one "
                f"has {value}; resume with the same settings"
            )


def _load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_weights(checkpoint, WEIGHT_FILES["adapter"][1]))
        return
    kind = "decoder" if (checkpoint / WEIGHT_FILES["decoder"][1]).exists() else "full"
    model.load_state_dict(load_weights(checkpoint, WEIGHT_FILES[kind][1]), strict=False)


def _put_in_place(staging: Path, target: Path) -> None:
    """Renames; a checkpoint of the same step stays until the new one stands there."""
    former = target.with_name(f".{target.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        os.replace(target, former)
    try:
        os.replace(staging, target)
    except OSError:
        if former.exists():
            os.replace(former, target)
        raise
    shutil.rmtree(former, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, the newest first."""
    found = [entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)] if folder.is_dir() else []
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("step_")), reverse=True)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder of a checkpoint's name is one, damaged or not, and no folder of the user's."""
    return any((folder / name).is_file() for name in (_FILES, _PROGRESS))


def own_checkpoints(folder: Path) -> list[Path]:
    """Those of [`list_checkpoints`] that are one, see [`is_checkpoint`]."""
    return [entry for entry in list_checkpoints(folder) if is_checkpoint(entry)]


def remove_checkpoints(folder: Path) -> None:
    """Removes a run's checkpoints; a folder of the same kind of name without a checkpoint's files stays."""
    for entry in own_checkpoints(folder):
        shutil.rmtree(entry)


def remove_staging(folder: Path) -> None:
    """Removes what a run left that was killed while it wrote a checkpoint."""
    for pattern in (".step_*.partial", ".step_*.former"):
        for entry in folder.glob(pattern):
            shutil.rmtree(entry, ignore_errors=True)


def find_checkpoint(wanted: str, folder: Path) -> Path | None:
    """
    The checkpoint that `--resume_from_checkpoint` names.

    Args:
        wanted (`str`): a checkpoint's folder, or `"latest"`: the newest whole one of `folder`.
        folder (`Path`): the run's output folder.

    Returns:
        `Path` or `None`: None where the latest is asked for and there is none. Half-written ones are passed over with
        a warning.

    Raises:
        InputError: the named folder is no whole checkpoint.
    """
    if wanted != "latest":
        problem = damage_of(Path(wanted))
        if problem is not None:
            raise InputError(f"--resume_from_checkpoint {wanted} {problem}; name another, or latest")
        return Path(wanted)
    for checkpoint in list_checkpoints(folder):
        problem = damage_of(checkpoint)
        if problem is None:
            return checkpoint
        print(f"warning: passing over the checkpoint {checkpoint}: it {problem}", file=sys.stderr)
    return None


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None where all are as they were written."""
    try:
        written = json.loads((checkpoint / _FILES).read_text(encoding="utf-8"))
        wrong = [name for name, described in written.items() if _describe(checkpoint / name) != described]
    except (OSError, ValueError, AttributeError) as error:
        return f"is no whole checkpoint ({error})"
    return f"is damaged: {wrong[0]} is not as it was written" if wrong else None


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
