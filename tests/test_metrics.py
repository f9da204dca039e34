"""Dice and IoU: each image by itself, the empty mask, batches and processes."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU

from peft_vlsm.segmentation.metrics import SegmentationMetric, mask_overlap


def _masks(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(images, 9, 7, generator=generator) > threshold for threshold in (0.6, 0.4)]


def _mask(*pixels):
    return torch.tensor([pixels], dtype=torch.bool)[None]


CASES = {
    "equal": (_mask(1, 1, 0, 0), _mask(1, 1, 0, 0), 1.0, 1.0),
    "apart": (_mask(1, 1, 0, 0), _mask(0, 0, 1, 1), 0.0, 0.0),
    "half": (_mask(1, 1, 0, 0), _mask(0, 1, 1, 0), 0.5, 1 / 3),
    "both empty": (_mask(0, 0, 0, 0), _mask(0, 0, 0, 0), 1.0, 1.0),
    "predicted empty": (_mask(0, 0, 0, 0), _mask(0, 0, 0, 1), 0.0, 0.0),
    "truly empty": (_mask(0, 0, 0, 1), _mask(0, 0, 0, 0), 0.0, 0.0),
}


@pytest.mark.parametrize("predicted, true, dice, iou", CASES.values(), ids=CASES)
def test_one_image(predicted, true, dice, iou):
    metric = SegmentationMetric()
    metric.add_batch(predictions=predicted, references=true)
    assert metric.compute() == pytest.approx({"dice": dice, "iou": iou})


def test_equals_monai_averaged_over_images():
    predicted, true = _masks(5)
    metric = SegmentationMetric()
    for start in (0, 2, 4):
        metric.add_batch(predictions=predicted[start : start + 2], references=true[start : start + 2].float())
    dice, iou = DiceMetric(), MeanIoU()
    for reference in (dice, iou):
        reference(predicted[:, None].float(), true[:, None].float())
    expected = {"dice": dice.aggregate().item(), "iou": iou.aggregate().item()}
    assert metric.compute() == pytest.approx(expected, abs=1e-6)


def test_compute_begins_anew():
    predicted, true = _masks(4)
    metric = SegmentationMetric()
    metric.add_batch(predictions=predicted, references=true)
    first = metric.compute()
    metric.add_batch(predictions=true, references=true)
    assert metric.compute() == {"dice": 1.0, "iou": 1.0} != first


def test_counts():
    assert mask_overlap(_mask(1, 1, 0, 1), _mask(0, 1, 1, 1)).tolist() == [[2, 3, 3]]


def test_shapes_must_match():
    with pytest.raises(ValueError, match="differ in shape"):
        SegmentationMetric().add_batch(predictions=torch.zeros(2, 4, 4), references=torch.zeros(2, 1, 4, 4))


TWO_PROCESSES = """
import json, torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from peft_vlsm.segmentation.metrics import SegmentationMetric
generator = torch.Generator().manual_seed(0)
masks = [torch.rand(5, 9, 7, generator=generator) > threshold for threshold in (0.6, 0.4)]
accelerator = Accelerator()
loader = accelerator.prepare(DataLoader(TensorDataset(*masks), batch_size=2))
metric = SegmentationMetric(gather=accelerator.gather_for_metrics)
for predicted, true in loader:
    metric.add_batch(predictions=predicted, references=true)
print(json.dumps({"processes": accelerator.num_processes, "images": len(metric), **metric.compute()}), flush=True)
accelerator.end_training()
"""


def test_two_processes_count_an_uneven_last_batch_once():
    predicted, true = _masks(5)
    alone = SegmentationMetric()
    alone.add_batch(predictions=predicted, references=true)
    expected = {"processes": 2, "images": 5, **alone.compute()}
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with ExitStack() as stack:
        runs = []
        for rank in ("0", "1"):
            environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", TWO_PROCESSES]
            runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
            stack.enter_context(runs[-1])
            stack.callback(runs[-1].kill)
        for run in runs:
            output, _ = run.communicate(timeout=400)
            assert json.loads(output.splitlines()[-1]) == pytest.approx(expected)
