"""Worst and best cases, images that are read once, and masks at their images' own size."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import tiny_clipseg, tiny_processor, write_dataset

from peft_vlsm.segmentation.data.annotations import AnnotationRow, read_annotations
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.evaluation.scoring import (
    CaseDataset,
    extreme_samples,
    list_cases,
    predict_masks,
    score_cases,
)
from peft_vlsm.segmentation.models.processor import Processor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_annotations(write_dataset(tmp_path_factory.mktemp("data") / "discs", {"test": 4}), "test")


def _dataset(rows):
    processor = tiny_processor()
    return CaseDataset(list_cases(rows), Processor(processor.image_processor, processor.tokenizer))


@pytest.mark.parametrize("count, worst, best", [(1, [5], [6]), (2, [5, 2], [6, 9]), (9, [5, 2, 10, 8], [])])
def test_the_worst_and_the_best_are_of_different_images(rows, count, worst, best):
    dice = np.full(12, 0.5)
    dice[[5, 3, 2, 6, 7, 9]] = [0.0, 0.05, 0.1, 1.0, 0.97, 0.95]
    dice[10] = 0.2
    samples = extreme_samples(tiny_clipseg(), _dataset(rows), dice, CPU, count=count)
    assert [sample.dice for sample in samples] == [dice[place] for place in (*worst, *best)]
    notes = [f"worst {rank}" for rank in range(1, len(worst) + 1)] + [
        f"best {rank}" for rank in range(1, len(best) + 1)
    ]
    assert [sample.note.split(":")[0] for sample in samples] == notes
    assert len({sample.note.split(": ")[1].split(",")[0] for sample in samples}) == len(samples)


def test_a_sample_shows_what_was_scored(rows):
    dataset, model = _dataset(rows), tiny_clipseg()
    (sample, *_) = extreme_samples(model, dataset, np.arange(12) / 12, CPU, threshold=0.48, count=1)
    (predicted,) = predict_masks(model, dataset.collate([dataset[0]]), 0.48)
    image, mask = rows[0].open()
    assert (sample.prompt, sample.note) == ("disc", "worst 1: test_0.png, p1")
    assert sample.image.tobytes() == image.tobytes() and np.array_equal(sample.true_mask, mask)
    assert np.array_equal(sample.predicted_mask, predicted.numpy()) and sample.predicted_mask.shape == mask.shape


def test_an_image_is_read_once_for_all_of_its_prompts(rows, monkeypatch):
    opened = []
    original = AnnotationRow.open
    monkeypatch.setattr(AnnotationRow, "open", lambda row: opened.append(row.index) or original(row))
    dataset = _dataset(rows)
    examples = [dataset[place] for place in range(len(dataset))]
    assert opened == [0, 1, 2, 3]
    assert [example["prompt"] for example in examples[:3]] == [texts[0] for texts in rows[0].prompts.values()]


def test_a_batch_has_as_many_cases_as_asked_for(rows, monkeypatch):
    sizes = []
    original = CaseDataset.collate
    monkeypatch.setattr(
        CaseDataset, "collate", lambda dataset, examples: sizes.append(len(examples)) or original(dataset, examples)
    )
    scores = score_cases(tiny_clipseg(), _dataset(rows), Accelerator(), batch_size=5)
    assert sizes == [5, 5, 2] and len(scores["dice"]) == 12


def test_logits_that_are_not_finite_are_refused(rows):
    model, dataset = tiny_clipseg(), _dataset(rows)
    model.decoder.film_add.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="logits are not finite"):
        predict_masks(model, dataset.collate([dataset[0]]), 0.5)
