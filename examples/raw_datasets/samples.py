"""What a data set is made of before it is written: samples, each one image with one mask, and the data set's row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peft_vlsm.segmentation.prompts.attributes import MaskAttributes
from peft_vlsm.segmentation.prompts.templates import Prompts, compose_prompts


@dataclass(frozen=True)
class Sample:
    """
    One image with one mask; several samples may share an image.

    Args:
        split (`str`, *optional*): one of `SPLITS`. None: the publisher gives it for training, so that it becomes
            "train", or what the publisher lacks of "val" and "test".
        image_name (`str`): file name of the image, which ends in .png, .jpg or .jpeg.
        mask_name (`str`): file name of the mask, likewise; it may hold a folder.
        category (`int`): index of the mask's class.
        class_names (`Sequence[str]`): what prompts may call the class.
        load (`Callable[[], tuple[np.ndarray, np.ndarray]]`):
            gives the image, uint8 of shape (height, width) or (height, width, 3), and the mask, bool of shape
            (height, width).
        describe (`Callable`, defaults to [`compose_prompts`]):
            makes the prompts from `class_names` and the mask's attributes, which are None where the mask is empty.
        may_be_empty (`bool`, defaults to `False`): whether an empty mask is a sample or a mistake.
        source (`Path`, *optional*): the image file, which is copied as it is where `image_name` has its suffix.
        patient (`str`, *optional*): whose image it is, where that is known: a patient lies in one split.
        segment_id (`str`, *optional*): the row's `segment_id`. Default: the mask's name without its suffix.
        row (`dict`, *optional*): the user's own annotation, which is kept as it is.
    """

    split: str | None
    image_name: str
    mask_name: str
    category: int
    class_names: Sequence[str]
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    describe: Callable[[Sequence[str], MaskAttributes | None], Prompts] = compose_prompts
    may_be_empty: bool = False
    source: Path | None = None
    patient: str | None = None
    segment_id: str | None = None
    row: dict[str, Any] | None = None

    @property
    def image_key(self) -> object:
        """Equal for samples of one image: its file, or its name where the image comes from no file."""
        return self.source or self.image_name


@dataclass(frozen=True)
class Dataset:
    """
    A row of `DATASETS`.

    Args:
        list_samples (`Callable[..., list[Sample]]`): gives the samples; its argument is RAW where `needs_raw`.
        needs_raw (`bool`): whether the user brings a folder of downloaded files.
        notice (`Path`): the licence notice that becomes OUT/LICENSE.
        description (`str`): what `--help` says.
        folders (`Mapping[str, str]`, defaults to none): the folder below images/ and masks/ of each split's files.
    """

    list_samples: Callable[..., list[Sample]]
    needs_raw: bool
    notice: Path
    description: str
    folders: Mapping[str, str] = field(default_factory=dict)
