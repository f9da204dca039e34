"""The parts of the table of bad input: what a case says, and the flags of scripts whose input was spoilt."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from builders import tiny_processor
from PIL import Image
from spoilers import (
    IMAGES,
    SIZES,
    edit_json,
    edit_weights,
    evil_pickle,
    full_disk,
    sign,
    small_disk,
    torch_file,
    write_hub_cache,
    write_source,
)
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

ADAPTER, SAFETENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
QUICK = ("--method", "decoder", "--max_train_steps", 1, "--per_device_train_batch_size", 4)
CHECKPOINTED = (
    *("--method", "dense", "--adapter_dim", 4, "--per_device_train_batch_size", 2),
    *("--checkpointing_steps", 1, "--max_train_steps"),
)
FUNNY = "größe 図 ☂"


@dataclass(frozen=True)
class World:
    """What all cases share, and none changes."""

    base: Path
    data: Path
    runs: dict[str, Path]


@dataclass(frozen=True)
class Place:
    """Where a case spoils copies of it."""

    world: World
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def marker(self) -> Path:
        """A folder that is made where a pickle is loaded."""
        return self.folder / "a pickle was loaded"

    def copy(self, kind: str) -> Path:
        source = self.world.base if kind == "base" else self.world.runs[kind]
        return shutil.copytree(source, self.out if kind == "checkpoints" else self.folder / kind)


Flags = Callable[[Place], list]


@dataclass(frozen=True)
class Case:
    """
    Something that is wrong, and how the script must end.

    Args:
        flags (`Callable`): spoils something, and gives the script's flags.
        said (`tuple[str, ...]`): what the error's line holds; of a case that is handled, what is printed and logged.
        script (`str`): which is run.
        fate (`str`): "refused", "stopped" or "handled".
        meanwhile (`Callable`): what goes wrong while the script runs.
    """

    flags: Flags
    said: tuple[str, ...]
    script: str = "finetune"
    fate: str = "refused"
    meanwhile: Callable[[Place], AbstractContextManager] = field(default=lambda place: nullcontext())


def finetune_flags(place: Place, data: Path | None = None, base: Path | None = None, out: Path | None = None) -> list:
    data, base, out = data or place.world.data, base or place.world.base, out or place.out
    return ["--data_dir", data, "--model_name_or_path", base, "--output_dir", out, *QUICK]


def predict_flags(place: Place, adapter: object, image: Path | None = None, *more: object) -> list:
    image = image or place.world.data / "images" / "val_0.png"
    return ["--adapter", adapter, "--image", image, "--prompt", "disc", "--output", place.out, *more]


def evaluate_flags(place: Place, adapters: list[Path], data: Path | None = None) -> list:
    return ["--adapter", *adapters, "--data_dir", data or place.world.data, "--split", "val", "--output", place.out]


# Data


def rows_of(kind: str, changes: dict[int, dict]) -> Flags:
    """A data set of which some training rows are otherwise; a key of `IMAGES` stands for such an image's content."""

    def spoil(place: Place) -> list:
        spoilt = {
            number: {
                role: IMAGES[value](SIZES[kind]) if role != "prompt" and value in IMAGES else value
                for role, value in change.items()
            }
            for number, change in changes.items()
        }
        return finetune_flags(place, write_source(kind, place.folder / "data", spoilt))

    return spoil


def data_case(kind: str, *said: str, **change: object) -> Case:
    return Case(rows_of(kind, {0: change}), said)


def named(kind: str, name: str) -> Flags:
    """The first image has another name, and the file too."""

    def spoil(place: Place) -> list:
        flags = rows_of(kind, {0: {"image": name, "prompt": FUNNY}})(place)
        folder = place.folder / "data" / ("train" if kind == "imagefolder" else "images")
        first = {"medvlsm": "train_0.png", "coco": "7.png", "imagefolder": "0.png"}[kind]
        shutil.copy(folder / first, folder / name)
        return flags

    return spoil


def spoilt_file(kind: str, name: str, content: bytes | None) -> Flags:
    """A file of the data set holds something else, or is gone."""

    def spoil(place: Place) -> list:
        flags = rows_of(kind, {})(place)
        file = place.folder / "data" / name
        file.unlink() if content is None else file.write_bytes(content)
        return flags

    return spoil


def streamed(kind: str, changes: dict[int, dict]) -> Flags:
    """As [`rows_of`], read while training runs."""
    return lambda place: [*rows_of(kind, changes)(place), "--streaming"]


def asked_for(name: str, how: str, prompt: str = "disc") -> Flags:
    """An image file of this name is given to predict.py."""

    def flags(place: Place) -> list:
        (place.folder / name).write_bytes(IMAGES[how]((40, 36)))
        return [*predict_flags(place, place.world.runs["dense"], place.folder / name), "--prompt", prompt]

    return flags


def link_outside(place: Place) -> list:
    flags = rows_of("medvlsm", {})(place)
    shutil.move(place.folder / "data" / "images" / "train_0.png", place.folder / "secret.png")
    (place.folder / "data" / "images" / "train_0.png").symlink_to(place.folder / "secret.png")
    return flags


def repeated(place: Place) -> list:
    flags = rows_of("imagefolder", {})(place)
    file = place.folder / "data" / "train" / "metadata.jsonl"
    file.write_text(file.read_text() * 2)
    return flags


def late_damage(place: Place) -> list:
    """The pixels of a validation image are damaged, which its header does not tell."""
    flags = rows_of("medvlsm", {})(place)
    file = place.folder / "data" / "images" / "val_1.png"
    file.write_bytes(file.read_bytes()[:-500])
    return flags


def csv_table(place: Place, *rows: str) -> list:
    (place.folder / "table.csv").write_text("\n".join(("image,prompt", *rows)), encoding="utf-8")
    Image.new("RGB", (9, 9)).save(place.folder / f"{FUNNY}.png")
    flags = ["--csv", place.folder / "table.csv", "--output", place.out]
    return ["--adapter", place.world.runs["dense"], *flags]


# Models


def saved(kind: str, spoil: Callable[[Path, Place], object]) -> Flags:
    """A spoilt copy of what a method left, which predict.py is given."""

    def flags(place: Place) -> list:
        folder = place.copy(kind)
        spoil(folder, place)
        return predict_flags(place, folder)

    return flags


def weights_case(kind: str, edit: Callable[[dict], object], *said: str, fate: str = "refused") -> Case:
    def spoil(folder: Path, place: Place) -> None:
        edit_weights(next(folder.glob("*.safetensors")), edit)

    return Case(saved(kind, spoil), said, "predict", fate)


def settings_case(kind: str, *said: str, fate: str = "refused", **changes: object) -> Case:
    return Case(saved(kind, lambda folder, place: edit_json(folder / ADAPTER, **changes)), said, "predict", fate)


def drop(part: str) -> Callable[[dict], object]:
    return lambda weights: weights.pop(next(name for name in sorted(weights) if part in name))


def misshape(part: str) -> Callable[[dict], object]:
    return lambda weights: weights.update({next(name for name in sorted(weights) if part in name): torch.zeros(3)})


def integers(part: str) -> Callable[[dict], object]:
    return lambda weights: weights.update({name: weights[name].int() for name in sorted(weights) if part in name})


def pickled(where: str, torch_made: bool = False) -> Callable[[Path, Place], None]:
    """The weights are a pickle, by this name, and the safetensors file is gone unless it has this name."""

    def spoil(folder: Path, place: Place) -> None:
        next(folder.glob("*.safetensors")).unlink()
        (folder / where).write_bytes(torch_file({"a": torch.zeros(1)}) if torch_made else evil_pickle(place.marker))

    return spoil


def pickle_beside(folder: Path, place: Place) -> None:
    (folder / PICKLE).write_bytes(evil_pickle(place.marker))


def of_base(spoil: Callable[[Path, Place], object], script: str = "finetune") -> Flags:
    def flags(place: Place) -> list:
        folder = place.copy("base")
        spoil(folder, place)
        if script == "finetune":
            return finetune_flags(place, base=folder)
        return predict_flags(place, place.world.runs["dense"], None, "--model_name_or_path", folder)

    return flags


def wider(folder: Path, place: Place) -> None:
    config = CLIPSegConfig.from_pretrained(folder).to_dict()
    config["text_config"]["hidden_size"] = 32
    CLIPSegForImageSegmentation(CLIPSegConfig.from_dict(config)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)


def foreign_code(folder: Path, place: Place) -> None:
    edit_json(folder / "config.json", model_type="own", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text(f"import os; os.mkdir({str(place.marker)!r})")


def pickle_among_adapters(place: Place) -> list:
    folder = place.copy("lora")
    pickled(PICKLE)(folder, place)
    return evaluate_flags(place, [place.world.runs["dense"], folder])


def command(kind: str, spoil: Callable[[Path, Place], object], *words: str) -> Flags:
    def flags(place: Place) -> list:
        folder = place.copy(kind)
        spoil(folder, place)
        return [words[0], folder, *words[1:]]

    return flags


def pickled_hub(place: Place) -> AbstractContextManager:
    config = (place.world.runs["dense"] / ADAPTER).read_bytes()
    write_hub_cache(place.folder / "hub", "me/old", {ADAPTER: config, PICKLE: evil_pickle(place.marker)})
    patch = pytest.MonkeyPatch()
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place.folder / "hub"))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return _Undone(patch)


class _Undone(AbstractContextManager):
    """Takes patches back at its end."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.patch = patch

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


# Outputs and checkpoints


def resumed(spoil: Callable[[Path, Place], object], resume: str = "latest", *more: object) -> Flags:
    def flags(place: Place) -> list:
        out = place.copy("checkpoints")
        spoil(out, place)
        resume_from = resume if resume == "latest" else place.folder / resume
        return [*finetune_flags(place)[:6], *CHECKPOINTED, 4, *more, "--resume_from_checkpoint", resume_from]

    return flags


def signed(name: str, content: Callable[[Path, Place], bytes]) -> Callable[[Path, Place], None]:
    """A file of the newest checkpoint is replaced, and the list of its files fits."""

    def spoil(out: Path, place: Place) -> None:
        (out / "step_2" / name).write_bytes(content(out / "step_2" / name, place))
        sign(out / "step_2")

    return spoil


def checkpoint_weights(edit: Callable[[dict], object]) -> Callable[[Path, Place], None]:
    def spoil(out: Path, place: Place) -> None:
        edit_weights(out / "step_2" / SAFETENSORS, edit)
        sign(out / "step_2")

    return spoil


def nothing(out: Path, place: Place) -> None:
    pass


def own_file(place: Place) -> Path:
    (place.folder / "file").write_text("the user's own")
    return place.folder / "file"


def failing(owner: object, name: str, part: str) -> Callable[[Place], AbstractContextManager]:
    return lambda place: full_disk(owner, name, part)


def small(size: int) -> Callable[[Place], AbstractContextManager]:
    return lambda place: small_disk(size)
