"""The log of a run, its curves, and the trackers that a user may ask for."""

import json
import struct
from importlib.util import find_spec

import numpy as np
import pytest
from accelerate import Accelerator
from builders import forget_accelerator, load_example, run_example, write_dataset
from PIL import Image

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.training.tracking import (
    TRACKERS,
    JsonlTracker,
    draw_curves,
    log_picture,
    make_trackers,
    read_log,
    start_trackers,
)


def write(folder, *lines):
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_log_drops_what_is_measured_again(tmp_path):
    write(tmp_path, {"step": 1, "train_loss": 3}, {"step": 2, "train_loss": 2}, {"step": 3, "train_loss": 1})
    tracker = JsonlTracker(tmp_path, resumed_step=2)
    tracker.start()
    tracker.log({"train_loss": 1.5}, step=3)
    assert [line["train_loss"] for line in read_log(tmp_path)] == [3, 2, 1.5]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    write(tmp_path, {"step": 1, "train_loss": 3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "tra')
    assert read_log(tmp_path) == [{"step": 1, "train_loss": 3}]
    JsonlTracker(tmp_path, resumed_step=5).start()
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 1


def test_no_log_yet(tmp_path):
    assert read_log(tmp_path) == []


def test_curves_show_what_was_measured():
    lines = [{"step": step, "train_loss": 3 / step, "learning_rate": 1e-3} for step in range(1, 9)]
    lines += [{"step": 8, "val_loss": 1.0, "val_dice": 0.5, "val_iou": 0.4}]
    full, empty = (np.asarray(draw_curves(lines)), np.asarray(draw_curves([])))
    assert full.shape == empty.shape and (full != empty).mean() > 0.01


@pytest.mark.parametrize(
    "names, problem",
    [
        ("mlflow", "--report_to mlflow is unknown; allowed: wandb, trackio, tensorboard"),
        ("tensorboard,", "--report_to  is unknown"),
        ("", "--report_to  is unknown"),
        ("wandb", "--report_to wandb: its package is missing; pip install wandb"),
        ("tensorboard,trackio", "--report_to trackio: its package is missing; pip install trackio"),
    ],
)
def test_trackers_that_cannot_be_had(names, problem, monkeypatch):
    monkeypatch.setattr("peft_vlsm.segmentation.training.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(InputError, match=problem):
        make_trackers(True, names)
    assert make_trackers(False, None) == [] and make_trackers(True, None) == ["tensorboard"]


def test_what_needs_a_service_starts_first(monkeypatch):
    monkeypatch.setattr("peft_vlsm.segmentation.training.tracking.get_available_trackers", lambda: TRACKERS)
    assert make_trackers(True, "tensorboard, trackio,wandb,wandb") == ["wandb", "trackio", "tensorboard"]


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "out" / "peft_vlsm"))
    events.Reload()
    scalars = {(event.step, name): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    return scalars, {(event.step, name) for name in events.Tags()["images"] for event in events.Images(name)}


def read_wandb(folder):
    """The file of an offline run is a log of LevelDB's form: blocks of 32 KiB, in them pieces of protobuf records."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    # Its background process may still be writing after `finish`.
    wandb.teardown()
    scalars, pictures = {}, set()
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, place, piece = file.read_bytes(), len(":W&B") + 3, b""
        while place + 7 <= len(data):
            if 2**15 - place % 2**15 < 7:
                place += 2**15 - place % 2**15
                continue
            _, length, kind = struct.unpack_from("<IHB", data, place)
            place += 7 + length
            piece += data[place - length : place]
            if kind not in (FULL, LAST):
                continue
            record, piece = Record.FromString(piece), b""
            items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            names = {name.removesuffix("._type") for name in items if name.endswith("._type")}
            pictures |= {(int(items["_step"]), name) for name in names}
            plain = [name for name in items if "." not in name and not name.startswith("_")]
            scalars |= {(int(items["_step"]), name): float(items[name]) for name in plain}
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/*.png"))) >= len(pictures)
    return scalars, pictures


def read_trackio(folder):
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    scalars, pictures = {}, set()
    for run in Api().runs("peft_vlsm"):
        if run.config["output_dir"] != str(folder / "out"):
            continue
        for line in SQLiteStorage.get_logs("peft_vlsm", run.name, run_id=run.id):
            for name in line.keys() - {"timestamp", "step"}:
                if isinstance(line[name], dict):
                    assert (MEDIA_DIR / line[name]["file_path"]).stat().st_size > 0
                    pictures.add((line["step"], name))
                else:
                    scalars[line["step"], name] = line[name]
    return scalars, pictures


FULL, LAST = 1, 4
READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio}


@pytest.fixture(scope="session")
def trackio_store(tmp_path_factory):
    """trackio reads its folder's name once, where it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


@pytest.fixture
def offline(trackio_store, tmp_path, monkeypatch):
    """Every tracker keeps its files in the test's folders."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name, value in {"MODE": "offline", "CONSOLE": "off", "SILENT": "true", "DISABLE_GIT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    forget_accelerator()
    yield
    if find_spec("wandb") is not None:
        # Its background process keeps the settings of the first run.
        import wandb

        wandb.teardown()


def logged(folder):
    return {(line["step"], name): line[name] for line in read_log(folder) for name in line if name != "step"}


@pytest.mark.parametrize("tracker", READERS)
def test_a_run_tells_its_tracker_what_the_log_says(tracker, base, tmp_path, offline):
    pytest.importorskip(tracker, reason=f"pip install {tracker}")
    data = write_dataset(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    flags = ("--with_tracking", "--report_to", tracker, "--per_device_train_batch_size", 2, "--adapter_dim", 4)
    places = ("--model_name_or_path", base, "--data_dir", data, "--output_dir", tmp_path / "out")
    run_example(load_example("finetune"), *places, *flags, "--max_train_steps", 2)
    forget_accelerator()
    run_example(
        load_example("finetune"), *places, *flags, "--max_train_steps", 4, "--resume_from_checkpoint", "latest"
    )
    scalars, pictures = READERS[tracker](tmp_path)
    expected = logged(tmp_path / "out")
    assert {(1, "train_loss"), (4, "train_loss"), (4, "val_dice"), (2, "val_loss")} <= expected.keys()
    assert scalars == pytest.approx(expected, rel=1e-6)
    assert {(2, "val_samples"), (2, "samples"), (4, "samples")} <= pictures
    with Image.open(tmp_path / "out" / "samples" / "val_samples_2.png") as picture:
        assert picture.width > 500


def start(folder, names, resumed_step):
    forget_accelerator()
    tracker = JsonlTracker(folder, resumed_step)
    accelerator = Accelerator(cpu=True, log_with=[*make_trackers(True, names), tracker], project_dir=folder)
    start_trackers(accelerator, {"output_dir": str(folder)}, resumed_step)
    return accelerator


def test_several_trackers_drop_what_a_resumed_run_measures_again(tmp_path, offline):
    names = [name for name in READERS if find_spec(name) is not None]
    out = tmp_path / "out"
    out.mkdir()
    for resumed_step, loss, steps in ((0, 2.0, (1, 2, 3)), (1, 1.0, (2,))):
        accelerator = start(out, ",".join(names), resumed_step)
        for step in steps:
            accelerator.log({"train_loss": loss}, step=step)
            log_picture(accelerator, "samples", Image.new("RGB", (8, 6), (0, 0, 255)), step)
        accelerator.end_training()
    assert logged(out) == {(1, "train_loss"): 2.0, (2, "train_loss"): 1.0}
    assert read_tensorboard(tmp_path) == (logged(out), {(1, "samples"), (2, "samples")})
    # wandb and trackio keep the earlier run beside the new one.
    for name in set(names) - {"tensorboard"}:
        scalars, pictures = READERS[name](tmp_path)
        assert scalars.keys() == {(step, "train_loss") for step in (1, 2, 3)}
        assert pictures == {(step, "samples") for step in (1, 2, 3)}


def test_wandb_without_a_key_ends_before_anything_is_written(tmp_path, offline, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    out = tmp_path / "out"
    out.mkdir()
    write(out, {"step": 1, "train_loss": 3})
    with pytest.raises(InputError, match="--report_to wandb.* cannot be started: No API key.*WANDB_MODE=offline"):
        start(out, "tensorboard,wandb", 0)
    assert [file.name for file in out.iterdir()] == ["log.jsonl"] and len(read_log(out)) == 1
