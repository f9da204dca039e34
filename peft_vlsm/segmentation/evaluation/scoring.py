"""A model's answers to every image and prompt of a data set, scored at the images' own size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from peft_vlsm.segmentation.data.row_images import image_name
from peft_vlsm.segmentation.data.transforms import image_to_tensor, mask_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.evaluation.metrics import SegmentationMetric
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.models.segmenter import run_segmenter
from peft_vlsm.segmentation.pictures import Sample
from peft_vlsm.segmentation.prediction.predictor import resize_logits
from peft_vlsm.segmentation.prompts.choice import RANDOM, evaluation_prompt
from peft_vlsm.segmentation.sources.rows import EMPTY_PROMPT, Row

# The name of a prompt that the user gives in place of the rows' own.
OVERRIDE = "override"


@dataclass(frozen=True)
class Case:
    """
    One image and one of its prompts.

    Args:
        row ([`Row`]): the image, its mask and all of its prompts.
        key (`str`): the prompt's name: `p0`, `p1`, ..., or `override`, which no row holds.
        prompt (`str`): its text.
    """

    row: Row
    key: str
    prompt: str

    @property
    def image(self) -> str:
        """What names the image, which several rows may share: its file, or else the row."""
        return image_name(self.row)


def list_cases(rows: Sequence[Row], keys: list[str] | None = None, override_prompt: str | None = None) -> list[Case]:
    """
    Pairs every row with its prompts; of a prompt in several wordings, the first one is taken.

    Args:
        rows (`Sequence[Row]`): of one data set.
        keys (`list[str]`, *optional*): names of the prompts to take, `p0` (the empty prompt) among them if wished.
            Rows without one of them go without it. `["random"]` is the one of [`evaluation_prompt`], as where
            finetune.py evaluates. Default: all prompts that a row has, without `p0`.
        override_prompt (`str`, *optional*): the one prompt of all rows, in place of their own.

    Returns:
        `list[Case]`: the first row's prompts, then the second's, and so on.

    Raises:
        InputError: no row has a prompt of one of the names.
    """
    if override_prompt is not None:
        return [Case(row, OVERRIDE, override_prompt) for row in rows]
    if keys == [RANDOM]:
        return [Case(row, list(row.prompts)[-1], evaluation_prompt(row)) for row in rows]
    cases = []
    for row in rows:
        texts = {EMPTY_PROMPT: [""], **row.prompts}
        taken = list(row.prompts) if keys is None else [key for key in keys if key in texts]
        cases += [Case(row, key, texts[key][0]) for key in taken]
    unknown = [key for key in keys or [] if all(case.key != key for case in cases)]
    if unknown:
        known = ", ".join(sorted({key for row in rows for key in row.prompts}, key=prompt_number))
        raise InputError(f"--prompt {unknown[0]}: no row has this prompt; rows have {known}")
    return cases


def prompt_number(key: str) -> int:
    """What prompts are sorted by: 10 for `p10`, which stands behind `p9`; `override` stands alone."""
    return 0 if key == OVERRIDE else int(key[1:])


class CaseDataset(Dataset[dict[str, Any]]):
    """
    Cases as a torch data set, in their order; an image with several prompts in a row is read once.

    Args:
        cases (`list[Case]`): at least one.
        processor ([`Processor`]): prepares the images; its size was set by [`fit_processor`].
    """

    def __init__(self, cases: list[Case], processor: Processor):
        self.cases = cases
        self.processor = processor
        self._last: tuple[Row, dict[str, torch.Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, place: int) -> dict[str, Any]:
        case = self.cases[place]
        if self._last is None or self._last[0] is not case.row:
            self._last = case.row, self._read(case.row)
        return {**self._last[1], "prompt": case.prompt}

    def _read(self, row: Row) -> dict[str, torch.Tensor]:
        image, mask = row.open()
        pixel_values = image_to_tensor(self.processor, image)
        square = mask_to_tensor(mask, pixel_values.shape[-1])
        return {"pixel_values": pixel_values, "masks": square, "whole_masks": torch.from_numpy(mask)}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Makes a batch, for `DataLoader(collate_fn=...)`.

        Returns:
            `dict[str, Any]`: `pixel_values` (B, 3, side, side), `masks` (B, side, side), `input_ids` and
            `attention_mask` (B, tokens), and `whole_masks`, a list of B boolean masks (H, W) of their images' sizes.
        """
        return {
            **{name: torch.stack([example[name] for example in examples]) for name in ("pixel_values", "masks")},
            **prompts_to_tensors(self.processor, [example["prompt"] for example in examples]),
            "whole_masks": [example["whole_masks"] for example in examples],
        }


@torch.no_grad()
def predict_masks(model: torch.nn.Module, batch: dict[str, Any], threshold: float) -> list[torch.Tensor]:
    """
    The predicted masks of a batch, each of its image's own size.

    Args:
        model (`torch.nn.Module`): in eval mode, on the batch's device.
        batch (`dict[str, Any]`): of [`CaseDataset.collate`].
        threshold (`float`): a pixel belongs to a mask where its probability is above this, 0 to 1.

    Returns:
        `list[torch.Tensor]`: B boolean masks (H, W).

    Raises:
        InputError: the model's logits are not finite.
    """
    logits = run_segmenter(model, batch).logits.float()
    if not torch.isfinite(logits).all():
        raise InputError("the model's logits are not finite; its weights are broken, train it again")
    # Taken in float64, where logit(0.5) is exactly 0.
    cut = torch.tensor(threshold, dtype=torch.float64).logit().item()
    return [
        resize_logits(square, mask.shape[::-1]) > cut
        for square, mask in zip(logits, batch["whole_masks"], strict=True)
    ]


def score_cases(
    model: torch.nn.Module,
    dataset: CaseDataset,
    accelerator: Accelerator,
    batch_size: int = 32,
    threshold: float = 0.5,
    title: str = "evaluating",
) -> dict[str, np.ndarray]:
    """
    Scores every case; several processes share the work, and each gets all figures.

    Args:
        model (`torch.nn.Module`): in eval mode, on the accelerator's device.
        dataset ([`CaseDataset`]): the cases.
        accelerator ([`~accelerate.Accelerator`]): gathers the figures; cases that pad a last batch count once.
        batch_size (`int`, defaults to 32): cases a batch and process.
        threshold (`float`, defaults to 0.5): see [`predict_masks`].
        title (`str`): of the bar.

    Returns:
        `dict[str, np.ndarray]`: `dice`, `iou`, `precision`, `recall`, `hd95` (pixels of the image), `predicted_pixels`
        and `true_pixels`, each of shape `(len(dataset),)`; see [`SegmentationMetric`].

    Raises:
        InputError: a file cannot be used, or the model's logits are not finite.
    """
    loader = accelerator.prepare_data_loader(DataLoader(dataset, batch_size, collate_fn=dataset.collate))
    metric = SegmentationMetric(gather=accelerator.gather_for_metrics, hd95=True)
    for batch in tqdm(loader, desc=title, unit="batch", disable=not accelerator.is_main_process):
        metric.add_batch(predictions=predict_masks(model, batch, threshold), references=batch["whole_masks"])
    return metric.compute(per_image=True)["per_image"]


def extreme_samples(
    model: torch.nn.Module,
    dataset: CaseDataset,
    dice: np.ndarray,
    device: torch.device,
    threshold: float = 0.5,
    count: int = 3,
) -> list[Sample]:
    """
    The cases of lowest and of highest Dice, to look at; no image comes twice.

    Args:
        model (`torch.nn.Module`): in eval mode, on `device`.
        dataset ([`CaseDataset`]): the cases.
        dice (`np.ndarray` of shape `(len(dataset),)`): what [`score_cases`] measured.
        device (`torch.device`): of the model.
        threshold (`float`, defaults to 0.5): as in [`score_cases`].
        count (`int`, defaults to 3): so many at either end.

    Returns:
        `list[Sample]`: the worst first, then the best.
    """
    order = np.argsort(dice, kind="stable").tolist()
    shown: set[str] = set()
    samples = []
    for end, places in (("worst", order), ("best", reversed(order))):
        for rank, place in enumerate(_of_new_images(dataset, places, shown, count), 1):
            samples.append(_sample(model, dataset, place, device, threshold, float(dice[place]), f"{end} {rank}"))
    return samples


def _of_new_images(dataset: CaseDataset, places: Iterable[int], shown: set[str], count: int) -> list[int]:
    """The first cases whose image is not shown yet; notes their images."""
    chosen = []
    for place in places:
        image = dataset.cases[place].image
        if image not in shown and len(chosen) < count:
            shown.add(image)
            chosen.append(place)
    return chosen


def _sample(
    model: torch.nn.Module,
    dataset: CaseDataset,
    place: int,
    device: torch.device,
    threshold: float,
    dice: float,
    rank: str,
) -> Sample:
    case = dataset.cases[place]
    batch = dataset.collate([dataset[place]])
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    (predicted,) = predict_masks(model, moved, threshold)
    image, mask = case.row.open()
    return Sample(
        image, case.prompt, mask, predicted.cpu().numpy(), dice, f"{rank}: {Path(case.image).name}, {case.key}"
    )
