"""Pictures of what a model makes of a data set."""

import torch
from PIL import Image

from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.evaluation.metrics import SegmentationMetric
from peft_vlsm.segmentation.models.segmenter import run_segmenter
from peft_vlsm.segmentation.pictures import Sample, contact_sheet

SAMPLES = 6


@torch.no_grad()
def draw_samples(model: torch.nn.Module, dataset: SegmentationDataset, device: torch.device) -> Image.Image:
    """
    A contact sheet of some of a data set's rows, spread evenly over it.

    Args:
        model (`torch.nn.Module`): on `device`; is left in eval mode.
        dataset ([`SegmentationDataset`]): without augmentation.
        device (`torch.device`): where the model is.

    Returns:
        `PIL.Image.Image`: see [`contact_sheet`].
    """
    model.eval()
    places = sorted({round(place) for place in torch.linspace(0, len(dataset) - 1, SAMPLES).tolist()})
    samples = []
    for place in places:
        batch = {name: value.to(device) for name, value in dataset.collate([dataset[place]]).items()}
        predicted = run_segmenter(model, batch).logits > 0
        metric = SegmentationMetric()
        metric.add_batch(predictions=predicted, references=batch["masks"] > 0)
        scores = metric.compute()
        assert scores is not None
        image, mask = dataset.rows[place].open()
        samples.append(Sample(image, dataset.prompt(place), mask, predicted[0].cpu().numpy(), scores["dice"]))
    return contact_sheet(samples)
