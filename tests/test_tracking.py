"""The log of a run, its curves, and the trackers that a user may ask for."""

import json

import numpy as np
import pytest
from builders import forget_accelerator, load_example, run_example, write_dataset
from PIL import Image

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.training.tracking import JsonlTracker, draw_curves, make_trackers, read_log


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
    [("mlflow", "--report_to mlflow is unknown; allowed: tensorboard"), ("wandb", "its package is missing")],
)
def test_trackers_that_cannot_be_had(names, problem, monkeypatch):
    monkeypatch.setattr("peft_vlsm.segmentation.training.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(InputError, match=problem):
        make_trackers(True, names)
    assert make_trackers(False, None) == [] and make_trackers(True, None) == ["tensorboard"]


def test_a_run_tells_tensorboard_figures_and_pictures(base, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = write_dataset(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    forget_accelerator()
    flags = ("--with_tracking", "True", "--max_train_steps", 2, "--per_device_train_batch_size", 2, "--adapter_dim", 4)
    places = ("--model_name_or_path", base, "--data_dir", data, "--output_dir", tmp_path / "out")
    run_example(load_example("finetune"), *places, *flags)
    events = EventAccumulator(str(next((tmp_path / "out").rglob("events.*")).parent))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"train_loss", "learning_rate", "val_dice", "val_loss"}
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2]
    assert set(events.Tags()["images"]) == {"samples", "val_samples"}
    with Image.open(tmp_path / "out" / "samples" / "val_samples_2.png") as picture:
        assert picture.width > 500
