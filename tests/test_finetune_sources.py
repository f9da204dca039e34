"""finetune.py trains from every source of data; a streamed run that died resumes to the same bytes."""

import json

import datasets
import pytest
from builders import assert_same_run, failure_of, forget_accelerator, load_example, run_example
from source_data import png, records, square, streams, write_coco, write_imagefolder, write_parquet, write_tar

from peft_vlsm.segmentation.training.checkpoints import Checkpoints
from peft_vlsm.segmentation.training.tracking import read_log


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def run(base):
    def run(out, *flags):
        forget_accelerator()
        fixed = ("--adapter_dim", 4, "--per_device_train_batch_size", 2)
        run_example(load_example("finetune"), "--model_name_or_path", base, "--output_dir", out, *fixed, *flags)
        return json.loads((out / "all_results.json").read_text())

    return run


def imagefolder(folder):
    for split in ("train", "val", "test"):
        write_imagefolder(folder / split)
    return ("--data_dir", folder)


def coco(folder):
    write_coco(folder)
    return ("--data_dir", folder, "--negatives", 1)


def coco_by_flags(folder):
    write_coco(folder)
    files = [folder / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")]
    return ("--train_annotations", files[0], "--validation_annotations", files[1], "--image_root", folder / "images")


def parquet(folder):
    for number, split in enumerate(("train", "val")):
        for shard in range(3):
            write_parquet(folder / split / f"{shard}.parquet", records(100 * number + 10 * shard, 5))
    return ("--data_dir", folder)


def webdataset(folder):
    for split in ("train", "val"):
        rows = [{"png": row["image"]["bytes"], "mask.png": png(square()), "txt": b"a square"} for row in records(0, 4)]
        write_tar(folder / split / "0.tar", rows)
    return ("--data_dir", folder)


def by_name(folder):
    parquet(folder)
    return ("--dataset_name", folder)


# What each gives for training: rows, and whether there is a test split.
SOURCES = {
    "imagefolder": (imagefolder, 3, True),
    "coco with negatives": (coco, 5, False),
    "coco by flags": (coco_by_flags, 3, False),
    "parquet": (parquet, 15, False),
    "webdataset": (webdataset, 4, False),
    "a data set by its name": (by_name, 15, False),
}


@pytest.mark.parametrize("source, rows, test", SOURCES.values(), ids=SOURCES)
def test_a_source_trains(run, tmp_path, source, rows, test):
    results = run(tmp_path / "out", *source(tmp_path / "data"), "--num_train_epochs", 1)
    assert results["train_steps"] == -(-rows // 2)
    assert ("test_dice" in results) == test and 0 <= results["val_dice"] <= 1


def test_a_data_set_in_a_folder_is_told_by_its_whole_path(run, tmp_path, monkeypatch):
    """So that the model card does not take it for a name on the Hub, wherever it is read."""
    parquet(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    results = run(tmp_path / "out", "--dataset_name", "data", "--max_train_steps", 1)
    assert results["dataset_name"] == str((tmp_path / "data").resolve())


@streams
@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_that_died_resumes_to_the_same_bytes(run, tmp_path, monkeypatch, workers):
    flags = (*parquet(tmp_path / "data"), "--streaming", "--max_train_steps", 12, "--validation_steps", 5)
    flags = (*flags, "--dataloader_num_workers", workers)
    run(tmp_path / "whole", *flags, "--checkpointing_steps", 7)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        save = Checkpoints.save
        patch.setattr(Checkpoints, "save", lambda *args: (save(*args), 1 / 0))
        run(tmp_path / "out", *flags, "--checkpointing_steps", 7)
    run(tmp_path / "out", *flags, "--checkpointing_steps", 7, "--resume_from_checkpoint", "latest")
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    assert read_log(tmp_path / "out") == read_log(tmp_path / "whole")


@streams
def test_a_streamed_run_that_goes_on_after_its_end_keeps_its_place(run, tmp_path):
    """Twelve steps end within the third round of validation; the stream may have read no row more."""
    flags = (*parquet(tmp_path / "data"), "--streaming", "--validation_steps", 5, "--checkpointing_steps", "epoch")
    run(tmp_path / "out", *flags, "--max_train_steps", 12)
    place = json.loads((tmp_path / "out" / "step_12" / "stream_0.json").read_text())
    (read,) = place["positions"].values()
    assert read["epoch"] * 15 + read["before"] + read["given"] == 12 * 2


REFUSED = {
    "endless": (("--streaming",), "--streaming True needs --max_train_steps"),
    "idle": (("--validation_steps", 3), "--validation_steps 3 needs --streaming"),
    "no rows": (("--max_train_samples", 0), "--max_train_samples 0 must be at least 1"),
}


@pytest.mark.parametrize("flags, problem", REFUSED.values(), ids=REFUSED)
def test_flags_that_do_not_fit(base, tmp_path, capsys, flags, problem):
    source = parquet(tmp_path / "data")
    forget_accelerator()
    places = ("--model_name_or_path", base, "--output_dir", tmp_path / "out", *source)
    assert problem in failure_of(capsys, load_example("finetune"), *places, *flags)
    assert not (tmp_path / "out").exists()
