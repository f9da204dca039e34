"""What finetune.py promises and its results do not show: whole checkpoints, honest samples, means over all images."""

import json
import os
import signal
from dataclasses import asdict
from itertools import count, islice
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import (
    failure_of,
    forget_accelerator,
    load_example,
    move_trainable_weights,
    run_example,
    tiny_clipseg,
    tiny_processor,
    write_dataset,
)
from safetensors.torch import load_file, save_file
from source_data import records, streams, write_parquet
from torch.utils.data import DataLoader

from peft_vlsm.segmentation.data.annotations import read_annotations
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.evaluation.metrics import mask_overlap, overlap_scores
from peft_vlsm.segmentation.evaluation.validation import evaluate
from peft_vlsm.segmentation.models.finetuned import save_weights
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.models.segmenter import run_segmenter, segmentation_loss
from peft_vlsm.segmentation.training import checkpoints, samples
from peft_vlsm.segmentation.training.batches import RowSteps, StepBatches, StreamSteps
from peft_vlsm.segmentation.training.checkpoints import (
    Checkpoints,
    Progress,
    damage_of,
    load_weights_and_progress,
)
from peft_vlsm.segmentation.training.methods import Method, make_trainable, resolve
from peft_vlsm.segmentation.training.sharding import PreparedRun
from peft_vlsm.segmentation.training.termination import termination
from peft_vlsm.segmentation.training.tracking import read_log


@pytest.fixture
def decoder():
    """A model of which the decoder trains."""
    model = tiny_clipseg().requires_grad_(False)
    model.decoder.requires_grad_(True)
    return model


@pytest.fixture
def processor():
    ours = tiny_processor()
    return Processor(ours.image_processor, ours.tokenizer)


def _trained(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_checkpoint_that_cannot_be_put_in_place_leaves_the_former_one(decoder, processor, tmp_path, monkeypatch):
    forget_accelerator()
    optimizer = torch.optim.AdamW([weight for weight in decoder.parameters() if weight.requires_grad])
    run = PreparedRun(Accelerator(), decoder, optimizer, [], 1, 1.0)

    def save():
        Checkpoints(tmp_path, run, processor, {}, limit=1).save(Progress(step=3), _trained(decoder))

    save()
    before = {file.name: file.read_bytes() for file in (tmp_path / "step_3").iterdir()}
    move_trainable_weights(decoder)
    replace = os.replace

    def fail(source, target):
        if str(source).endswith(".partial"):
            raise OSError("no space left")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="step_3 cannot be written: no space left"):
        patch.setattr(checkpoints.os, "replace", fail)
        save()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_3"], "nothing half-written stays"
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "step_3").iterdir()}
    save()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_3"] and damage_of(tmp_path / "step_3") is None
    written = load_file(tmp_path / "step_3" / "decoder.safetensors")
    assert all(torch.equal(written[name], weight) for name, weight in _trained(decoder).items())


def test_each_process_goes_to_its_own_place_in_the_stream(tmp_path):
    found = []
    for process in (0, 1):
        (tmp_path / f"stream_{process}.json").write_text(json.dumps({"rank": process}))
        accelerator = SimpleNamespace(process_index=process, gradient_accumulation_steps=1)
        run = SimpleNamespace(accelerator=accelerator, load_states=lambda folder: None)
        stream = SimpleNamespace(load_state_dict=found.append)
        Checkpoints(tmp_path, run, None, {}, None, stream).load_states(tmp_path, Progress(step=1))
    assert found == [{"rank": 0}, {"rank": 1}]


def test_best_weights_of_something_else_are_refused(decoder, tmp_path):
    save_weights(decoder, tmp_path)
    (tmp_path / "progress.json").write_text(json.dumps({"progress": asdict(Progress(step=2)), "settings": {}}))
    best = _trained(decoder)
    save_file(best, tmp_path / "best.safetensors")
    progress, loaded = load_weights_and_progress(tmp_path, decoder, {})
    assert progress.step == 2 and loaded.keys() == best.keys()
    best.popitem()
    save_file(best, tmp_path / "best.safetensors")
    with pytest.raises(InputError, match="best.safetensors holds other weights than train"):
        load_weights_and_progress(tmp_path, decoder, {})


def test_sigterm_means_again_what_it_meant_before():
    before = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with termination() as came:
        assert not came
        signal.raise_signal(signal.SIGTERM)
        assert came
    assert before == (signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())) and came


def test_reading_batches_leaves_torchs_random_numbers_alone(processor, tmp_path):
    """Else a resumed epoch, of which the first batches are not read, would draw others."""
    rows = read_annotations(write_dataset(tmp_path / "data"), "train")
    steps = RowSteps(SegmentationDataset(rows, processor, seed=1), StepBatches(len(rows), 2, 1, 1, 0, seed=1), 0)
    before = torch.get_rng_state()
    assert len(list(steps)) == 3 and torch.equal(torch.get_rng_state(), before)


def _evaluate(dataset, batch_size, accelerator):
    loader = DataLoader(dataset, batch_size, collate_fn=dataset.collate)
    model = tiny_clipseg().train()
    scores = evaluate(model, loader, accelerator)
    assert not model.training
    return scores


def test_validation_is_a_mean_over_images_and_not_over_batches_and_padding_counts_once(processor, tmp_path):
    forget_accelerator()
    rows = read_annotations(write_dataset(tmp_path / "data", {"val": 5}), "val")
    dataset = SegmentationDataset(rows, processor)
    whole = _evaluate(dataset, 5, Accelerator())
    batch = dataset.collate([dataset[place] for place in range(5)])
    with torch.no_grad():
        output = run_segmenter(tiny_clipseg(), batch)
    overlap = mask_overlap(output.logits > 0, batch["masks"]).numpy()
    assert whole["dice"] == pytest.approx(overlap_scores(*overlap.T)["dice"].mean()) and 0 < whole["dice"] < 1
    assert whole["loss"] == pytest.approx(segmentation_loss(output, batch["masks"]).mean().item())
    assert _evaluate(dataset, 2, Accelerator()) == pytest.approx(whole)
    # Stands for two processes, of which the second got the first row once more.
    padded = SegmentationDataset([*rows, rows[0]], processor)
    two = SimpleNamespace(gather_for_metrics=lambda numbers: numbers[:5], gather=lambda numbers: numbers)
    assert _evaluate(padded, 6, two) == pytest.approx(whole)
    assert _evaluate(padded, 6, Accelerator())["loss"] != pytest.approx(whole["loss"])


def test_loras_change_is_not_scaled_whatever_its_rank():
    config = make_trainable(tiny_clipseg(), resolve(Method("lora", adapter_dim=4))).peft_config["default"]
    assert config.r == config.lora_alpha == 4


def test_ia3_scales_what_goes_into_the_second_layer_of_an_mlp():
    config = make_trainable(tiny_clipseg(), resolve(Method("ia3"))).peft_config["default"]
    second = {name for name in config.target_modules if name.endswith("fc2")}
    assert second and set(config.feedforward_modules) == second < set(config.target_modules)


@pytest.fixture
def finetune():
    return load_example("finetune")


@pytest.fixture
def arguments(finetune, tmp_path):
    def arguments(*flags):
        places = ("--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out")
        return finetune.parse_arguments(finetune.FinetuneArguments, [str(flag) for flag in (*places, *flags)])

    return arguments


def test_the_seed_is_that_of_new_weights_of_rows_and_of_negatives(finetune, base, tmp_path, monkeypatch, capsys):
    def refuse(args, split, seed):
        raise InputError(f"{split} with seed {seed}, torch with {torch.initial_seed()}")

    write_dataset(tmp_path / "data")
    monkeypatch.setattr(finetune, "load_rows", refuse)
    forget_accelerator()
    places = ("--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out", "--model_name_or_path", base)
    line = failure_of(capsys, finetune, *places, "--seed", 7)
    assert line == "error: train with seed 7, torch with 7"


PROCESSES = SimpleNamespace(num_processes=3, process_index=1)


def test_flags_of_training_rows_arrive(finetune, arguments, processor, tmp_path):
    rows = {"train": read_annotations(write_dataset(tmp_path / "data"), "train")}

    def batches(*flags):
        return finetune.make_batches(arguments(*flags), None, rows, processor, PROCESSES)

    shares = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 5, "--dataloader_num_workers", 1)
    steps = batches("--seed", 7, *shares)
    sampler = steps.sampler
    assert (sampler.batch_size, sampler.accumulation, sampler.processes, sampler.process) == (2, 5, 3, 1)
    assert sampler.seed == steps.dataset.seed == 7 and steps.loader.num_workers == 1 and steps.rows_per_step == 30
    assert batches("--prompt", "p1").dataset.prompt(0) == "disc"
    mirrored = batches("--override_prompt", "left", "--augment_flip", "True").dataset
    assert {mirrored.prompt(place) for place in range(6)} == {"left", "right"}
    prompts = [steps.dataset.prompt(place) for place in range(6)]
    steps.begin(1)
    assert prompts != [steps.dataset.prompt(place) for place in range(6)]


@streams
def test_flags_of_a_stream_arrive(finetune, arguments, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [record | {"prompt": "left"} for record in records(0, 8)]
    write_parquet(tmp_path / "data" / "train" / "0.parquet", rows)
    flags = ("--streaming", "--max_train_steps", 9, "--seed", 7, "--augment_flip", "True")
    flags = (*flags, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 5)

    def batches(*more):
        args = arguments(*flags, *more)
        return finetune.make_batches(args, finetune.open_stream(args), {}, processor, PROCESSES)

    steps = batches("--dataloader_num_workers", 4, "--validation_steps", 3)
    dataset = steps.stream.dataset
    assert (dataset.seed, dataset.rank, dataset.world_size) == (7, 1, 3)
    assert (steps.stream.batch_size, steps.stream.num_workers) == (2, 4)
    assert (steps.steps, steps.rows_per_step, batches().steps) == (3, 30, finetune.VALIDATION_STEPS)
    assert {example.prompt for example in islice(dataset, 8)} == {"left", "right"}
    assert {example.prompt for example in islice(batches("--override_prompt", "top").stream.dataset, 8)} == {"top"}


def test_steps_of_a_stream_count_micro_batches_and_go_on_within_an_epoch():
    steps = StreamSteps(SimpleNamespace(batch_size=2), accumulation=3, processes=1, steps=4)
    steps.stream = count()
    steps.begin(0, first_step=1)
    assert list(steps) == list(range(9)), "three steps of three batches are left"
    steps.begin(1)
    assert list(steps) == list(range(9, 21)), "the next epoch goes on in the stream"


PRECISIONS = {
    "a GPU": ((), True, None, "fp16"),
    "a GPU and a flag": (("--mixed_precision", "bf16"), True, None, "bf16"),
    "a GPU and accelerate launch": ((), True, "no", None),
    "a CPU": ((), False, None, None),
}


@pytest.mark.parametrize("flags, gpu, launched, precision", PRECISIONS.values(), ids=PRECISIONS)
def test_16_bits_are_the_default_on_a_gpu_alone(
    finetune, arguments, tmp_path, monkeypatch, flags, gpu, launched, precision
):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(finetune, "Accelerator", dict)
    assert finetune.make_accelerator(arguments(*flags), None)["mixed_precision"] == precision


def test_flags_of_training_and_evaluation_arrive(finetune, base, tmp_path, monkeypatch):
    seen = {"norms": [], "evaluated": [], "weights": [], "drawn": [], "decay": []}

    class Recorded(torch.optim.AdamW):
        def __init__(self, parameters, **settings):
            seen["decay"].append(settings["weight_decay"])
            super().__init__(parameters, **settings)

    def evaluated(model, loader, accelerator):
        seen["evaluated"].append((len(loader.dataset), len(loader), loader.dataset.prompt(0)))
        seen["weights"].append((tmp_path / "out" / "adapter_model.safetensors").exists())
        return evaluate(model, loader, accelerator)

    clip, draw = Accelerator.clip_grad_norm_, finetune.draw_samples
    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    monkeypatch.setattr(finetune, "evaluate", evaluated)
    monkeypatch.setattr(finetune, "draw_samples", lambda *args: seen["drawn"].append(len(args[1])) or draw(*args))
    monkeypatch.setattr(
        Accelerator,
        "clip_grad_norm_",
        lambda self, weights, norm: seen["norms"].append(norm) or clip(self, weights, norm),
    )
    data = write_dataset(tmp_path / "data", {"train": 6, "val": 3, "test": 4})
    forget_accelerator()
    places = ("--data_dir", data, "--output_dir", tmp_path / "out", "--model_name_or_path", base, "--prompt", "p1")
    rates = ("--learning_rate", "1e-9", "--weight_decay", 0.25, "--max_grad_norm", 0.125, "--adapter_dim", 4)
    sizes = ("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2, "--per_device_eval_batch_size", 2)
    run_example(finetune, *places, *rates, *sizes, "--num_train_epochs", 2, "--early_stopping_patience", 0)
    assert seen["decay"] == [0.25] and set(seen["norms"]) == {0.125}
    assert seen["evaluated"] == [(3, 2, "disc")] * 2 + [(4, 2, "disc")] and seen["drawn"] == [4]
    assert seen["weights"] == [False, True, True], "the best weights so far lie there from the first epoch on"
    losses = [line["train_loss"] for line in read_log(tmp_path / "out") if "train_loss" in line]
    validation = [line["val_loss"] for line in read_log(tmp_path / "out") if "val_loss" in line]
    assert len(losses) == 6 and losses == pytest.approx([validation[0]] * 6, rel=0.2), (
        "means over the rows of each step"
    )


@pytest.mark.parametrize("place", ["images/train_3.jpg", "masks/val_1.jpg", "images/test_2.jpg"])
def test_pixels_that_are_damaged_show_before_anything_is_written(finetune, base, tmp_path, capsys, place):
    """The header of a JPEG file says nothing of its pixels, where that of a small PNG file is read with them."""
    data = write_dataset(tmp_path / "data", suffix=".jpg")
    (data / place).write_bytes((data / place).read_bytes()[:-200])
    forget_accelerator()
    places = ("--data_dir", data, "--output_dir", tmp_path / "out", "--model_name_or_path", base)
    with pytest.raises(SystemExit) as stop:
        run_example(finetune, *places, "--max_train_steps", 1)
    assert stop.value.code == 2 and f"{place} cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_show_each_its_own_prompt_mask_and_dice(processor, tmp_path, monkeypatch):
    rows = read_annotations(write_dataset(tmp_path / "data", {"test": 9}), "test")
    dataset, model = SegmentationDataset(rows, processor), tiny_clipseg().train()
    shown = []
    monkeypatch.setattr(samples, "contact_sheet", shown.extend)
    samples.draw_samples(model, dataset, torch.device("cpu"))
    places = [0, 2, 3, 5, 6, 8]
    assert not model.training and [sample.prompt for sample in shown] == [dataset.prompt(place) for place in places]
    assert len({sample.prompt for sample in shown}) > 1
    for place, sample in zip(places, shown, strict=True):
        image, mask = rows[place].open()
        batch = dataset.collate([dataset[place]])
        with torch.no_grad():
            predicted = run_segmenter(model, batch).logits[0].numpy() > 0
        true = batch["masks"][0].numpy() > 0
        assert sample.image.tobytes() == image.tobytes() and np.array_equal(sample.true_mask, mask)
        assert np.array_equal(sample.predicted_mask, predicted) and 0 < predicted.mean() < 1
        assert sample.dice == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


def test_the_data_is_not_overwritten_by_another_name_of_its_folder(base, tmp_path, capsys):
    data = write_dataset(tmp_path / "data")
    (tmp_path / "link").symlink_to(data)
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    for out in (tmp_path / "link", data / "anns" / ".."):
        places = ("--data_dir", data, "--model_name_or_path", base, "--output_dir", out, "--overwrite_output_dir")
        assert "is --data_dir; name another folder" in failure_of(capsys, load_example("finetune"), *places)
    assert before == {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
