"""The rows of an annotation file as a torch data set: image, mask and prompt of each, and batches of tensors."""

from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from peft_vlsm.segmentation.annotations import AnnotationRow
from peft_vlsm.segmentation.images import check_pair, open_pair
from peft_vlsm.segmentation.prompts import evaluation_prompt, random_prompt
from peft_vlsm.segmentation.transforms import image_to_tensor, mask_to_tensor, prompts_to_tensors


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


class SegmentationDataset(Dataset[Example]):
    """
    Images, masks and prompts of a split.

    Args:
        rows (`list[AnnotationRow]`): the split's rows. The headers of their files are checked here, all of them, so
            that a damaged test image shows before training and not after it.
        processor ([`ProcessorMixin`]): prepares the images; its size was set by [`fit_processor`].
        seed (`int`, *optional*): given, every epoch draws another random prompt from this seed; see [`random_prompt`]
            and [`SegmentationDataset.set_epoch`]. Default: the fixed prompt of [`evaluation_prompt`].

    Raises:
        InputError: a file is no image, or a mask's size is not its image's; pixels that are damaged further on show
            when they are read.
    """

    def __init__(self, rows: list[AnnotationRow], processor: ProcessorMixin, seed: int | None = None):
        for row in rows:
            check_pair(row.image, row.mask)
        self.rows = rows
        self.processor = processor
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draws the random prompts of this epoch, counted from 0. Call it before the epoch's iteration begins."""
        self.epoch = epoch

    def prompt(self, place: int) -> str:
        """The prompt that the row at this place has in the current epoch."""
        row = self.rows[place]
        return evaluation_prompt(row) if self.seed is None else random_prompt(row, self.seed, self.epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:
        row = self.rows[place]
        image, mask = open_pair(row.image, row.mask)
        pixel_values = image_to_tensor(self.processor, image)
        return Example(place, pixel_values, mask_to_tensor(mask, pixel_values.shape[-1]), self.prompt(place))

    def collate(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """
        Makes a batch, for `DataLoader(collate_fn=...)`.

        Returns:
            `dict[str, torch.Tensor]`: `places` (B), `pixel_values` (B, 3, side, side), `masks` (B, side, side),
            `input_ids` and `attention_mask` (B, tokens).
        """
        return {
            "places": torch.tensor([example.place for example in examples]),
            "pixel_values": torch.stack([example.pixel_values for example in examples]),
            "masks": torch.stack([example.mask for example in examples]),
            **prompts_to_tensors(self.processor, [example.prompt for example in examples]),
        }
