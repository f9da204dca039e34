"""A run that was killed goes on to the same bytes; damaged checkpoints are passed over, foreign ones refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from builders import EXAMPLES, assert_same_run, forget_accelerator, load_example, run_example, write_dataset

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.training.checkpoints import (
    Checkpoints,
    damage_of,
    find_checkpoint,
    list_checkpoints,
)
from peft_vlsm.segmentation.training.termination import TERMINATED
from peft_vlsm.segmentation.training.tracking import read_log

FLAGS = ("--max_train_steps", 12, "--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2)
NAMES = ("out", "whole")
METHODS = {
    "dense VLC with decoder": ("--method", "dense", "--variant", "VLC", "--train_decoder", "True"),
    "shallow": ("--method", "shallow", "--adapter_dim", 8),
    "lora, cosine": ("--method", "lora", "--lr_scheduler_type", "cosine", "--num_warmup_steps", 2),
    "ia3": ("--method", "ia3",),
    "decoder": ("--method", "decoder"),
    "full": ("--method", "full"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "data", {"train": 14, "val": 3, "test": 3})


@pytest.fixture
def run(base, data):
    def run(out, *flags):
        forget_accelerator()
        run_example(load_example("finetune"), *arguments(base, data, out), *flags)

    return run


def arguments(base, data, out):
    return ("--model_name_or_path", base, "--data_dir", data, "--output_dir", out, *FLAGS)


class Killed(Exception):
    pass


def _die():
    raise Killed


def assert_same_to_the_end(resumed, whole):
    """The best weights, every line of the log, and what the last checkpoint holds."""
    assert_same_run(resumed, whole)
    last = [list_checkpoints(out)[0] for out in (resumed, whole)]
    assert last[0].name == last[1].name
    states = [{file.name: file.read_bytes() for file in step.iterdir()} for step in last]
    progress = [json.loads(state.pop("progress.json"))["progress"] | {"train_seconds": 0} for state in states]
    assert progress[0] == progress[1] and states[0].pop("files.json") and states[1].pop("files.json")
    assert {"optimizer.bin", "best.safetensors"} <= states[0].keys() and states[0] == states[1]


def weights(out):
    (file,) = [file for file in out.glob("*.safetensors") if file.name != "best.safetensors"]
    return file.read_bytes()


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("stop", [2, 3], ids=["within an epoch", "at its end"])
def test_a_resumed_run_ends_with_the_same_bytes(run, tmp_path, monkeypatch, flags, stop):
    # An epoch of 14 rows has three steps of at most six.
    flags = (*flags, "--checkpointing_steps", stop)
    run(tmp_path / "whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        save = Checkpoints.save
        patch.setattr(Checkpoints, "save", lambda *args: (save(*args), _die()))
        run(tmp_path / "out", *flags)
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == [f"step_{stop}"]
    run(tmp_path / "out", *flags, "--resume_from_checkpoint", "latest")
    assert_same_to_the_end(tmp_path / "out", tmp_path / "whole")
    results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("out", "whole")]
    for name in ("val_dice", "test_dice", "train_steps"):
        assert results[0][name] == results[1][name]


def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(base, data, run, tmp_path):
    flags = ("--max_train_steps", 40, "--checkpointing_steps", 3, "--method", "dense", "--adapter_dim", 4)
    run(tmp_path / "whole", *flags)
    out = tmp_path / "out"
    command = [sys.executable, "-W", "ignore", EXAMPLES / "finetune.py", *arguments(base, data, out), *flags]
    for steps in (6, 21):
        process = start(command, out, steps)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "all_results.json").exists()
    run(out, *flags, "--resume_from_checkpoint", "latest")
    assert_same_to_the_end(out, tmp_path / "whole")
    steps = [line["step"] for line in read_log(out) if "train_loss" in line]
    assert steps == list(range(1, 41))


def start(command, out, steps):
    """Starts a run that goes on from where it is, and waits until it has a later checkpoint."""
    resume = ["--resume_from_checkpoint", "latest"]
    with (out.parent / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*map(str, command), *resume], stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    for _ in range(1200):
        done = [int(folder.name.removeprefix("step_")) for folder in list_checkpoints(out)]
        if done and done[0] >= steps:
            return process
        assert process.poll() is None, (out.parent / "stderr").read_text()
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_and_exits(base, data, run, tmp_path, workers):
    """Schedulers send it to all processes of a run, those that read images too."""
    flags = ("--max_train_steps", 400, "--early_stopping_patience", 0, "--adapter_dim", 4)
    flags = (*flags, "--dataloader_num_workers", workers)
    out = tmp_path / "out"
    command = [sys.executable, "-W", "ignore", EXAMPLES / "finetune.py", *arguments(base, data, out), *flags]
    process = start(command, out, 3)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == TERMINATED, (tmp_path / "stderr").read_text()
    step = int(list_checkpoints(out)[0].name.removeprefix("step_"))
    assert damage_of(list_checkpoints(out)[0]) is None and 3 <= step < 400
    run(out, *flags, "--max_train_steps", step + 2, "--resume_from_checkpoint", "latest")
    run(tmp_path / "whole", *flags, "--max_train_steps", step + 2)
    assert_same_to_the_end(out, tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(base, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    forget_accelerator()
    run_example(load_example("finetune"), *arguments(base, data, out), "--adapter_dim", 4)
    (out / "all_results.json").unlink()
    return out


def test_checkpoints_hold_the_adapter_and_not_the_base(finished, base):
    newest, older = list_checkpoints(finished)
    assert (newest.name, older.name) == ("step_12", "step_9")
    assert (newest / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 4
    assert {file.name for file in newest.iterdir()} >= {"adapter_config.json", "optimizer.bin", "progress.json"}
    assert sum(file.stat().st_size for file in newest.glob("*.safetensors")) < 100_000


DAMAGE = {
    "no list of files": lambda step: (step / "files.json").unlink(),
    "a file less": lambda step: (step / "optimizer.bin").unlink(),
    "a file cut off": lambda step: (step / "optimizer.bin").write_bytes((step / "optimizer.bin").read_bytes()[:-1]),
    "a byte changed": lambda step: (step / "adapter_model.safetensors").write_bytes(
        (step / "adapter_model.safetensors").read_bytes()[:-1] + b"\1"
    ),
    "an empty folder": lambda step: [file.unlink() for file in step.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(finished, tmp_path, capsys, damage):
    out = shutil.copytree(finished, tmp_path / "out")
    damage(out / "step_12")
    assert find_checkpoint("latest", out) == out / "step_9"
    assert f"warning: passing over the checkpoint {out / 'step_12'}" in capsys.readouterr().err
    with pytest.raises(InputError, match="--resume_from_checkpoint .*step_12 is"):
        find_checkpoint(str(out / "step_12"), out)


CHANGED = {
    "seed": ("--seed", 7),
    "adapter_dim": ("--adapter_dim", 5),
    "learning_rate": ("--learning_rate", 0.5),
    "rows_per_step": ("--per_device_train_batch_size", 4),
    "augment_flip": ("--augment_flip", True),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_checkpoint_of_other_settings_is_refused(run, finished, tmp_path, capsys, name):
    out = shutil.copytree(finished, tmp_path / "out")
    before = weights(out)
    with pytest.raises(SystemExit) as stop:
        run(out, "--adapter_dim", 4, *CHANGED[name], "--resume_from_checkpoint", "latest")
    assert stop.value.code == 2 and f"is of a run with {name} " in capsys.readouterr().err
    assert weights(out) == before and len(list_checkpoints(out)) == 2


@pytest.mark.parametrize("first, then", [((3, 2), (6, 1)), ((6, 1), (3, 2)), ((2, 3), (3, 2))], ids=str)
def test_other_shares_of_the_same_steps_resume(run, tmp_path, first, then):
    """After seven steps, so that the micro-batches of the one are no whole number of steps of the other."""

    def share(batch_size, accumulation):
        sizes = ("--per_device_train_batch_size", batch_size, "--gradient_accumulation_steps", accumulation)
        return ("--adapter_dim", 4, "--checkpointing_steps", 7, *sizes)

    run(tmp_path / "whole", *share(*then))
    out = tmp_path / "out"
    run(out, *share(*first), "--max_train_steps", 7)
    run(out, *share(*then), "--resume_from_checkpoint", "latest")
    losses = [[line["train_loss"] for line in read_log(tmp_path / name) if "train_loss" in line] for name in NAMES]
    assert len(losses[1]) == 12 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("every", ["epoch", 4])
def test_a_run_killed_after_its_results_writes_them_again(run, tmp_path, every):
    """A checkpoint of every fourth step is written before the last validation, which is then measured again."""
    out, flags = tmp_path / "out", ("--adapter_dim", 4, "--checkpointing_steps", every)

    def left():
        results = json.loads((out / "all_results.json").read_text())
        for name in ("train_seconds", "resume_from_checkpoint"):
            results.pop(name)
        return weights(out), results, read_log(out)

    run(out, *flags)
    before = left()
    (out / "README.md").unlink()
    run(out, *flags, "--resume_from_checkpoint", "latest")
    assert before == left() and (out / "README.md").exists()


def test_what_a_killed_run_was_writing_is_removed(run, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    for name in (".step_11.partial", ".step_8.former"):
        shutil.copytree(out / "step_9", out / name)
    run(out, "--adapter_dim", 4, "--resume_from_checkpoint", "latest")
    assert list(out.glob(".*")) == []


def test_a_new_checkpoint_stays_beside_a_damaged_one_of_a_later_step(run, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "step_12" / "optimizer.bin").unlink()
    flags = ("--checkpointing_steps", 1, "--checkpoints_total_limit", 1, "--max_train_steps", 10)
    run(out, "--adapter_dim", 4, *flags, "--resume_from_checkpoint", "latest")
    assert [folder.name for folder in list_checkpoints(out)] == ["step_10"]


def _another_runs(folder, finished):
    shutil.copytree(finished, folder, dirs_exist_ok=True)


def _users(folder, finished):
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "mine.png").write_text("mine")
    (folder / "step_3").mkdir()


def _users_log(folder, finished):
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"mine": 1}\n')


NOT_THIS_RUNS = {
    "the user's own": (_users, "latest"),
    "the user's log": (_users_log, "latest"),
    "another run's": (_another_runs, "elsewhere"),
}


@pytest.mark.parametrize("fill, wanted", NOT_THIS_RUNS.values(), ids=NOT_THIS_RUNS)
def test_resuming_takes_no_folder_of_something_else(run, finished, tmp_path, capsys, fill, wanted):
    out = tmp_path / "out"
    fill(out, finished)
    if wanted == "elsewhere":
        wanted = shutil.copytree(finished, tmp_path / "elsewhere") / "step_9"
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(out, "--adapter_dim", 4, "--resume_from_checkpoint", wanted)
    assert stop.value.code == 2 and f"--output_dir {out} is not empty" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


@pytest.mark.parametrize("content", ["", '{"step": 1, "train_lo'], ids=["empty", "cut off"])
def test_a_run_killed_before_its_first_checkpoint_begins_again(run, tmp_path, content):
    out = tmp_path / "out"
    (out / "peft_vlsm").mkdir(parents=True)
    (out / "log.jsonl").write_text(content)
    run(out, "--max_train_steps", 1, "--resume_from_checkpoint", "latest")
    assert [line["step"] for line in read_log(out)] == [1, 1]


def test_a_checkpoint_by_its_path_goes_on_in_a_new_folder(run, finished, tmp_path):
    flags = ("--adapter_dim", 4, "--resume_from_checkpoint")
    run(tmp_path / "out", *flags, finished / "step_9")
    run(shutil.copytree(finished, tmp_path / "whole"), *flags, "latest")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert weights(tmp_path / "out" / "step_12") == weights(tmp_path / "whole" / "step_12")


def test_seconds_of_training_add_up_over_a_resume(base, data, finished, tmp_path, monkeypatch):
    script, out, began = load_example("finetune"), tmp_path / "out", time.monotonic()
    load, seconds = script.load_weights_and_progress, []

    def after_an_hour(*args):
        progress, best = load(*args)
        progress.train_seconds += 3600
        seconds.append(progress.train_seconds)
        return progress, best

    monkeypatch.setattr(script, "load_weights_and_progress", after_an_hour)
    forget_accelerator()
    flags = ("--adapter_dim", 4, "--resume_from_checkpoint", finished / "step_9")
    run_example(script, *arguments(base, data, out), *flags)
    saved = json.loads((out / "step_12" / "progress.json").read_text())["progress"]["train_seconds"]
    total = json.loads((out / "all_results.json").read_text())["train_seconds"]
    assert seconds[0] < saved < total + 0.001 < seconds[0] + time.monotonic() - began


def test_latest_without_any_checkpoint_begins(run, tmp_path, capsys):
    run(tmp_path / "out", "--max_train_steps", 1, "--resume_from_checkpoint", "latest")
    assert "there is no checkpoint" in capsys.readouterr().out
    assert (tmp_path / "out" / "all_results.json").exists()


def test_a_pickle_that_runs_code_is_not_run(run, finished, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    step = out / "step_12"
    marker = tmp_path / "ran"
    (step / "optimizer.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    files = json.loads((step / "files.json").read_text())
    from peft_vlsm.segmentation.training.checkpoints import _describe

    files["optimizer.bin"] = _describe(step / "optimizer.bin")
    (step / "files.json").write_text(json.dumps(files))
    with pytest.raises(SystemExit) as stop:
        run(out, "--adapter_dim", 4, "--resume_from_checkpoint", "latest")
    assert stop.value.code == 2 and "cannot be loaded" in capsys.readouterr().err
    assert not marker.exists()
