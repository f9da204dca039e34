"""finetune.py on families beside CLIPSeg, and over two processes: what trains, what is saved, what loads again."""

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from accelerate import Accelerator
from builders import EXAMPLES, forget_accelerator, load_example, run_example, write_dataset
from packaging.version import Version
from safetensors.torch import load_file
from segmenters import write_sam3_model
from torch.utils.data import DataLoader

from peft_vlsm.segmentation.data.annotations import read_annotations
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.evaluation.validation import evaluate
from peft_vlsm.segmentation.models.finetuned import load_base, load_finetuned
from peft_vlsm.segmentation.training.methods import KEYWORDS
from peft_vlsm.segmentation.training.tracking import read_log

METHODS = {
    "dense VLC": ("--method", "dense", "--variant", "VLC", "--adapter_dim", 4),
    "dense and decoder": ("--method", "dense", "--adapter_dim", 4, "--train_decoder", "True"),
    "shallow VC": ("--method", "shallow", "--variant", "VC", "--adapter_dim", 4),
    "lora": ("--method", "lora", "--adapter_dim", 2),
    "ia3": ("--method", "ia3"),
    "decoder": ("--method", "decoder"),
    "full": ("--method", "full"),
}


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    folder = write_sam3_model(tmp_path_factory.mktemp("models") / "sam3")
    config = json.loads((folder / "config.json").read_text())
    for part in ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config"):
        config[part]["dropout"] = 0.1  # As facebook/sam3 has it.
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "data", {"train": 7, "val": 3, "test": 3})


@pytest.fixture
def run(sam3, data):
    def run(out, *flags):
        forget_accelerator()
        places = ("--model_name_or_path", sam3, "--data_dir", data, "--output_dir", out)
        run_example(load_example("finetune"), *places, "--per_device_train_batch_size", 4, *flags)
        return json.loads((out / "all_results.json").read_text())

    return run


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS)
def test_sam3_trains_saves_and_loads(run, sam3, data, tmp_path, flags):
    if "--train_decoder" in flags and Version(peft.__version__) < KEYWORDS:
        pytest.skip("peft cannot run SAM3's mask_decoder in an adapter before 0.20")
    results = run(tmp_path / "out", *flags, "--max_train_steps", 3)
    assert results["image_size"] == 64 and 0 <= results["test_dice"] <= 1
    model, processor = load_finetuned(tmp_path / "out")
    dataset = SegmentationDataset(read_annotations(data, "test"), processor)
    loader = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
    assert evaluate(model, loader, Accelerator())["dice"] == pytest.approx(results["test_dice"])
    base = dict(load_base(str(sam3))[0].named_parameters())
    (file,) = (tmp_path / "out").glob("*.safetensors")
    weights = load_file(file)
    unmoved = [name for name, weight in weights.items() if name in base and torch.equal(weight, base[name])]
    assert flags[1] == "full" or not unmoved
    assert len(unmoved) < len(weights)


def test_presence_is_part_of_the_loss(run, tmp_path, monkeypatch):
    """Every prompt names what the image shows: presence rises."""
    flags = ("--method", "dense", "--adapter_dim", 8, "--learning_rate", 1e-2, "--num_train_epochs", 12)
    run(tmp_path / "out", *flags)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert min(losses) < losses[0] - 0.1


@pytest.mark.parametrize("side", [42, 56])
def test_sam3_is_built_for_the_size_that_is_asked_for(run, tmp_path, side):
    patch = 8
    if side % patch:
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "out", "--image_size", side, "--max_train_steps", 1)
        assert stop.value.code == 2 and not (tmp_path / "out").exists()
        return
    results = run(tmp_path / "out", "--image_size", side, "--max_train_steps", 1, "--adapter_dim", 4)
    assert results["image_size"] == side
    model, processor = load_finetuned(tmp_path / "out")
    assert model.config.vision_config.backbone_config.image_size == side
    assert dict(processor.image_processor.size)["height"] == side


def test_shallow_l_is_refused_with_the_reason(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", "--method", "shallow", "--variant", "VL")
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "sequence of all projected tokens" in line and not (tmp_path / "out").exists()


def test_train_decoder_is_refused_with_a_peft_that_cannot_run_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peft, "__version__", "0.19.1")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", "--train_decoder", "--adapter_dim", 4)
    assert stop.value.code == 2 and "pip install -U peft" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_gradient_checkpointing_is_refused_where_transformers_has_none(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", "--gradient_checkpointing")
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "transformers has none for a Sam3" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["clipseg", "sam3"])
def test_two_processes_train_what_one_trains(base, sam3, data, tmp_path, kind):
    """Seven rows in steps of four: the last step has three, of which one process takes one."""
    model = {"clipseg": base, "sam3": sam3}[kind]
    places = ("--model_name_or_path", model, "--data_dir", data)
    flags = ("--num_train_epochs", 2, "--adapter_dim", 4, "--variant", "VLC", "--augment_flip", "--augment_crop", 0.2)
    forget_accelerator()
    run_example(
        load_example("finetune"), *places, *flags, "--output_dir", tmp_path / "1", "--per_device_train_batch_size", 4
    )
    two = ("--output_dir", tmp_path / "2", "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2)
    two = (*two, "--dataloader_num_workers", 1)
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*torchrun, EXAMPLES / "finetune.py", *places, *flags, *two]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in (".", "step_4"):
        one, both = (load_file(tmp_path / name / folder / "adapter_model.safetensors") for name in "12")
        for name, weight in one.items():
            difference = (both[name] - weight).norm() / weight.norm()
            assert difference < 1e-3, f"{folder}, {name}: {difference}"
    losses = [[line["train_loss"] for line in read_log(tmp_path / name) if "train_loss" in line] for name in "12"]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-3)
    figures = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in "12"]
    for name in ("val_dice", "val_iou", "test_dice", "test_iou"):
        assert figures[0][name] == pytest.approx(figures[1][name], abs=1e-3)
    assert figures[0]["train_steps"] == figures[1]["train_steps"] == 4
