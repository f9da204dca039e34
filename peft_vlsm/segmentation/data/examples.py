"""From a row to what the model takes: which prompt, varied how, and the tensors of a batch."""

from dataclasses import dataclass

import numpy as np
import torch

from peft_vlsm.segmentation.data.augmentation import Augmentation, Draw
from peft_vlsm.segmentation.data.transforms import image_to_tensor, mask_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.prompts.choice import RANDOM, check_prompt_choice, choose_prompt
from peft_vlsm.segmentation.sources.rows import Row

# Beside the three numbers that a prompt is drawn from, so that augmentation changes no prompt that was drawn.
AUGMENTATION_STREAM = 1


@dataclass(frozen=True)
class Example:
    """
    A row, ready for a batch.

    Args:
        place (`int`): the row's place in the data set.
        pixel_values (`torch.Tensor` of shape `(3, side, side)`): the normalised image.
        mask (`torch.Tensor` of shape `(side, side)`): 0 and 1, float32.
        prompt (`str`): the prompt that was chosen.
    """

    place: int
    pixel_values: torch.Tensor
    mask: torch.Tensor
    prompt: str


@dataclass(frozen=True)
class ExampleMaker:
    """
    Makes examples of rows. What is random about one follows from seed, epoch and the row's index alone.

    Args:
        processor ([`Processor`]): prepares the images; its size was set by [`fit_processor`].
        seed (`int`, *optional*): of prompts and augmentation; None in evaluation, which has neither.
        prompt (`str`): see [`choose_prompt`].
        override_prompt (`str`, *optional*): every row's prompt, in place of its own.
        augmentation ([`Augmentation`], *optional*): how images and masks are varied.

    Raises:
        InputError: `prompt` is no choice, or there is augmentation without a seed.
    """

    processor: Processor
    seed: int | None = None
    prompt: str = RANDOM
    override_prompt: str | None = None
    augmentation: Augmentation | None = None

    def __post_init__(self):
        check_prompt_choice(self.prompt)
        if self.augmentation is not None and self.seed is None:
            raise InputError("augmentation needs a seed; evaluation has none, so leave augmentation out there")

    def choose_prompt(self, row: Row, epoch: int) -> str:
        """The prompt of a row in an epoch, its sides swapped where the image is mirrored."""
        return self._side_prompt(row, epoch, self._draw(row, epoch))

    def make(self, place: int, row: Row, epoch: int) -> Example:
        """Reads a row's image and mask; raises [`InputError`] where they cannot be used."""
        image, mask = row.open()
        draw = self._draw(row, epoch)
        prompt = self._side_prompt(row, epoch, draw)
        if self.augmentation is not None and draw is not None:
            image, mask = self.augmentation.apply(draw, image, mask)
        pixel_values = image_to_tensor(self.processor, image)
        return Example(place, pixel_values, mask_to_tensor(mask, pixel_values.shape[-1]), prompt)

    def collate(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Makes a batch; see [`SegmentationDataset.collate`]."""
        return {
            "places": torch.tensor([example.place for example in examples]),
            "pixel_values": torch.stack([example.pixel_values for example in examples]),
            "masks": torch.stack([example.mask for example in examples]),
            **prompts_to_tensors(self.processor, [example.prompt for example in examples]),
        }

    def _draw(self, row: Row, epoch: int) -> Draw | None:
        if self.augmentation is None or self.seed is None:
            return None
        return self.augmentation.draw(np.random.default_rng((self.seed, epoch, row.index, AUGMENTATION_STREAM)))

    def _side_prompt(self, row: Row, epoch: int, draw: Draw | None) -> str:
        prompt = self.override_prompt
        if prompt is None:
            prompt = choose_prompt(row, self.prompt, self.seed, epoch)
        return prompt if self.augmentation is None or draw is None else self.augmentation.prompt(draw, prompt)
