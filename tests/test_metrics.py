"""The metric: each image by itself, against monai; empty masks, sizes, batches and processes."""

import json
import math
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import evaluate
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, get_confusion_matrix

from peft_vlsm.segmentation.evaluation.metrics import OVERLAP_SCORES, SCORES, SegmentationMetric, mask_overlap
from peft_vlsm.segmentation.evaluation.surface import hausdorff_95


def _masks(images, seed=0, height=9, width=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(images, height, width, generator=generator) > threshold for threshold in (0.6, 0.4)]


def _mask(*pixels):
    return torch.tensor([pixels], dtype=torch.bool)[None]


def _blobs(images, seed):
    """Smooth masks with holes and several parts, as predictions are; none is empty."""
    noise = torch.rand(images, 1, 12, 15, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(47, 61), mode="bicubic")[:, 0]
    return smooth > 0.55


# monai's own call of its own function.
MONAI_WARNS = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
LOGITS = torch.full((2, 4, 4), -1.5)
DIAGONAL = math.hypot(1, 4)
# predicted, true, dice, iou, precision, recall, hd95
CASES = {
    "equal": (_mask(1, 1, 0, 0), _mask(1, 1, 0, 0), 1.0, 1.0, 1.0, 1.0, 0.0),
    "apart": (_mask(1, 0, 0, 0), _mask(0, 0, 0, 1), 0.0, 0.0, 0.0, 0.0, 3.0),
    "half": (_mask(1, 1, 0, 0), _mask(0, 1, 1, 0), 0.5, 1 / 3, 0.5, 0.5, 0.95),
    "too small": (_mask(0, 1, 0, 0), _mask(0, 1, 1, 1), 0.5, 1 / 3, 1.0, 1 / 3, 1.9),
    "both empty": (_mask(0, 0, 0, 0), _mask(0, 0, 0, 0), 1.0, 1.0, 1.0, 1.0, 0.0),
    "predicted empty": (_mask(0, 0, 0, 0), _mask(0, 0, 0, 1), 0.0, 0.0, 0.0, 0.0, DIAGONAL),
    "truly empty": (_mask(0, 0, 0, 1), _mask(0, 0, 0, 0), 0.0, 0.0, 0.0, 0.0, DIAGONAL),
    "full": (_mask(1, 1, 1, 1), _mask(1, 1, 1, 1), 1.0, 1.0, 1.0, 1.0, 0.0),
}


@pytest.mark.parametrize("predicted, true, dice, iou, precision, recall, hd95", CASES.values(), ids=CASES)
def test_one_image(predicted, true, dice, iou, precision, recall, hd95):
    scores = SegmentationMetric(hd95=True).compute(predictions=predicted, references=true)
    expected = dict(zip(SCORES, (dice, iou, precision, recall, hd95), strict=True))
    assert scores == pytest.approx(expected | {f"{name}_std": 0.0 for name in SCORES})


@MONAI_WARNS
@pytest.mark.parametrize("seed", range(4))
def test_equals_monai_image_by_image(seed):
    predicted, true = _blobs(6, seed), _blobs(6, seed + 100)
    metric = SegmentationMetric(hd95=True)
    for start in (0, 2, 4):
        metric.add_batch(predictions=predicted[start : start + 2], references=true[start : start + 2].float())
    measured = metric.compute(per_image=True)

    channels = predicted[:, None].float(), true[:, None].float()
    positive, wrong, _, missed = get_confusion_matrix(*channels)[:, 0].T
    expected = {
        "dice": compute_dice(*channels)[:, 0],
        "iou": compute_iou(*channels)[:, 0],
        "precision": positive / (positive + wrong),
        "recall": positive / (positive + missed),
        "hd95": compute_hausdorff_distance(*channels, include_background=True, percentile=95, directed=False)[:, 0],
    }
    assert expected["hd95"].std() > 0.1, "the masks are all alike"
    for name, values in expected.items():
        assert measured["per_image"][name] == pytest.approx(values.numpy(), abs=1e-4), name
        assert measured[name] == pytest.approx(values.mean().item(), abs=1e-4)
        assert measured[f"{name}_std"] == pytest.approx(values.std(correction=0).item(), abs=1e-4)


@MONAI_WARNS
def test_noise_equals_monai_too():
    predicted, true = _masks(20, height=23, width=31)
    ours = [hausdorff_95(*pair) for pair in zip(predicted.numpy(), true.numpy(), strict=True)]
    theirs = compute_hausdorff_distance(predicted[:, None], true[:, None], include_background=True, percentile=95)
    assert ours == pytest.approx(theirs[:, 0].numpy(), abs=1e-4)


def test_distances_do_not_depend_on_where_the_objects_lie():
    predicted, true = np.zeros((2, 90, 120), bool)
    predicted[3:10, 4:9] = true[3:10, 20:26] = True
    moved = [np.roll(mask, (60, 70), (0, 1)) for mask in (predicted, true)]
    assert hausdorff_95(predicted, true) == hausdorff_95(*moved) == hausdorff_95(true, predicted) > 11


def test_the_diagonal_is_the_images_own():
    one = torch.ones(1, 30, 40, dtype=torch.bool)
    assert SegmentationMetric(hd95=True).compute(predictions=one, references=~one)["hd95"] == pytest.approx(50.0)


def test_masks_of_many_sizes():
    sizes = [(5, 8), (9, 4), (5, 8)]
    pairs = [_masks(1, seed, *size) for seed, size in enumerate(sizes)]
    together, apart = SegmentationMetric(hd95=True), SegmentationMetric(hd95=True)
    together.add_batch(predictions=[pair[0][0] for pair in pairs], references=[pair[1][0].numpy() for pair in pairs])
    for predicted, true in pairs:
        apart.add(prediction=predicted[0], reference=true[0])
    scores = together.compute(per_image=True)
    assert scores["per_image"]["true_pixels"].tolist() == [int(true.sum()) for _, true in pairs]
    assert scores["per_image"]["predicted_pixels"].tolist() == [int(predicted.sum()) for predicted, _ in pairs]
    del scores["per_image"]
    assert scores == apart.compute()


def test_compute_begins_anew():
    predicted, true = _masks(4)
    metric = SegmentationMetric()
    metric.add_batch(predictions=predicted, references=true)
    first = metric.compute()
    metric.add_batch(predictions=true, references=true)
    assert metric.compute() == {name: 1.0 for name in OVERLAP_SCORES} | {f"{name}_std": 0.0 for name in OVERLAP_SCORES}
    assert first["dice"] < 1


def test_distances_are_measured_only_where_asked_for():
    predicted, true = _masks(2)
    assert not any("hd95" in name for name in SegmentationMetric().compute(predictions=predicted, references=true))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_masks_of_any_type_measure_the_same(dtype):
    predicted, true = _masks(3)
    given = [masks.to(dtype) for masks in (predicted, true)]
    if dtype.is_floating_point:
        given[0].requires_grad_()
    expected = SegmentationMetric(hd95=True).compute(predictions=predicted, references=true)
    assert SegmentationMetric(hd95=True).compute(predictions=given[0], references=given[1]) == expected


def test_combined_with_another_metric():
    predicted, true = _masks(4)
    combined = evaluate.combine({"near": SegmentationMetric(hd95=True), "plain": SegmentationMetric()})
    combined.add_batch(predictions=predicted[:2], references=true[:2])
    combined.add(prediction=predicted[2], reference=true[2])
    combined.add_batch(predictions=predicted[3:], references=true[3:])
    expected = SegmentationMetric(hd95=True).compute(predictions=predicted, references=true)
    scores = combined.compute()
    assert {name: scores.get(f"near_{name}", scores.get(name)) for name in expected} == expected
    assert scores["plain_dice"] == expected["dice"]


@pytest.mark.parametrize("given", [{}, {"prediction": LOGITS[0] > 0}, {"references": LOGITS[0] > 0}])
def test_one_image_needs_both_masks(given):
    with pytest.raises(ValueError, match="give both prediction and reference"):
        SegmentationMetric().add(**given)


def test_counts():
    assert mask_overlap(_mask(1, 1, 0, 1), _mask(0, 1, 1, 1)).tolist() == [[2, 3, 3]]


ZEROS = torch.zeros(2, 4, 4)
BAD = {
    "shapes": (ZEROS, torch.zeros(2, 4, 5), "differ in shape"),
    "one mask as a batch": (ZEROS[0], ZEROS[0], r"predictions of shape \(4, 4\) are no masks: give them as"),
    "channels": (ZEROS[:, None], ZEROS[:, None], r"predictions of shape \(2, 1, 4, 4\) are no masks"),
    "channels in a list": (list(ZEROS), list(ZEROS[:, None]), r"references of shape \(1, 1, 4, 4\) are no masks"),
    "no masks": ([], [], "there are no masks"),
    "no masks in arrays": (ZEROS[:0], ZEROS[:0], "there are no masks"),
    "sizes in a list": ([ZEROS[0]], [torch.zeros(4, 5)], "differ in shape"),
    "numbers of masks": ([ZEROS[0]], [ZEROS[0], ZEROS[1]], "differ in number"),
    "logits": (LOGITS, ZEROS, "predictions hold other values than 0 and 1"),
    "grey references": (ZEROS, torch.full((2, 4, 4), 255, dtype=torch.uint8), "references hold other values"),
    "one alone": (ZEROS, None, "give both predictions and references"),
    "nothing": (None, None, "no masks were added"),
}


@pytest.mark.parametrize("predictions, references, problem", BAD.values(), ids=BAD)
def test_what_is_no_mask_is_refused(predictions, references, problem):
    with pytest.raises(ValueError, match=problem):
        SegmentationMetric().compute(predictions=predictions, references=references)


def test_only_numbers_are_gathered():
    gathered = []

    def gather(numbers):
        gathered.append(numbers.numel())
        return torch.cat([numbers, numbers])

    predicted, true = _masks(3, height=50, width=60)
    metric = SegmentationMetric(gather=gather, hd95=True)
    metric.add_batch(predictions=predicted, references=true)
    assert isinstance(metric, evaluate.Metric) and len(metric) == 6
    assert gathered == [3 * 3, 3]
    alone = SegmentationMetric(hd95=True).compute(predictions=predicted, references=true)
    assert metric.compute() == pytest.approx(alone)


def test_a_script_named_evaluate_does_not_hide_the_library(tmp_path):
    (tmp_path / "evaluate.py").write_text("raise RuntimeError('the script was imported')\n")
    (tmp_path / "other.py").write_text(
        "import sys; before = list(sys.path)\n"
        "from peft_vlsm.segmentation.evaluation.metrics import SegmentationMetric\n"
        "assert sys.path == before, 'the path is left as it was'\n"
        "print(SegmentationMetric.__mro__[1].__module__)\n"
    )
    run = subprocess.run([sys.executable, tmp_path / "other.py"], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout.strip()) == (0, "evaluate.module"), run.stderr


TWO_PROCESSES = """
import json, torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from peft_vlsm.segmentation.evaluation.metrics import SegmentationMetric
generator = torch.Generator().manual_seed(0)
masks = [torch.rand(5, 9, 7, generator=generator) > threshold for threshold in (0.6, 0.4)]
accelerator = Accelerator()
loader = accelerator.prepare(DataLoader(TensorDataset(*masks), batch_size=2))
metric = SegmentationMetric(gather=accelerator.gather_for_metrics, hd95=True)
for predicted, true in loader:
    metric.add_batch(predictions=list(predicted), references=list(true))
images = len(metric)
scores = metric.compute(per_image=True)
order = scores.pop("per_image")["true_pixels"].tolist()
print(json.dumps({"processes": accelerator.num_processes, "images": images, "order": order, **scores}), flush=True)
accelerator.end_training()
"""


def test_two_processes_count_an_uneven_last_batch_once_and_keep_the_order():
    predicted, true = _masks(5)
    alone = SegmentationMetric(hd95=True).compute(predictions=predicted, references=true)
    expected = {"processes": 2, "images": 5, **alone}
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
            measured = json.loads(output.splitlines()[-1])
            assert measured.pop("order") == true.sum((1, 2)).tolist()
            assert measured == pytest.approx(expected)
