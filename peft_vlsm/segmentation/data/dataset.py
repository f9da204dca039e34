"""The rows of a split as a torch data set: image, mask and prompt of each, and batches of tensors."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from peft_vlsm.segmentation.data.augmentation import Augmentation
from peft_vlsm.segmentation.data.examples import Example, ExampleMaker
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.prompts.choice import RANDOM
from peft_vlsm.segmentation.sources.rows import Row, check_rows

__all__ = ["Example", "SegmentationDataset"]


class SegmentationDataset(Dataset[Example]):
    """
    Images, masks and prompts of a split.

    Args:
        rows (`Sequence[Row]`): the split's rows. The headers of their files are checked here, all of them, so that a
            damaged test image shows before training and not after it.
        processor ([`Processor`]): prepares the images; its size was set by [`fit_processor`].
        seed (`int`, *optional*): given, every epoch draws another random prompt from this seed; see [`random_prompt`]
            and [`SegmentationDataset.set_epoch`]. Default: the fixed prompt of [`evaluation_prompt`].
        prompt (`str`): `"random"`, or one of a row's keys (`"p0"` is the empty prompt); see [`choose_prompt`].
        override_prompt (`str`, *optional*): every row's prompt, in place of its own.
        augmentation ([`Augmentation`], *optional*): varies images and masks, and mirrors prompts with them; needs
            `seed`, from which it is drawn with the epoch and the row's index.

    Raises:
        InputError: a file is no image, a mask's size is not its image's, or a row lacks the prompt; pixels that are
            damaged further on show when they are read.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: Processor,
        seed: int | None = None,
        prompt: str = RANDOM,
        override_prompt: str | None = None,
        augmentation: Augmentation | None = None,
    ):
        self._maker = ExampleMaker(processor, seed, prompt, override_prompt, augmentation)
        for row in rows:
            self._maker.choose_prompt(row, epoch=0)
        check_rows(rows)
        self.rows = rows
        self.processor = processor
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draws the random prompts of this epoch, counted from 0. Call it before the epoch's iteration begins."""
        self.epoch = epoch

    def prompt(self, place: int) -> str:
        """The prompt that the row at this place has in the current epoch."""
        return self._maker.choose_prompt(self.rows[place], self.epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:
        return self._maker.make(place, self.rows[place], self.epoch)

    def collate(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """
        Makes a batch, for `DataLoader(collate_fn=...)`.

        Returns:
            `dict[str, torch.Tensor]`: `places` (B), `pixel_values` (B, 3, side, side), `masks` (B, side, side),
            `input_ids` and `attention_mask` (B, tokens).
        """
        return self._maker.collate(examples)
