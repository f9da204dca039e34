"""`--check`: counts images, empty masks, images that occur twice and prompts that the text encoder would cut."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peft_vlsm.segmentation.data.annotations import SPLITS, read_annotations
from peft_vlsm.segmentation.data.images import open_pair
from peft_vlsm.segmentation.errors import InputError
from raw_datasets.splits import image_digest

NAMED = 5


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model.

    Raises:
        InputError: there is none of this name or in this folder.
    """
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--tokenizer {name} is no tokenizer: {str(error).splitlines()[0]}") from error


@dataclass
class Check:
    """
    Counts over a data set's rows.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): its `model_max_length` is the limit for prompts.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: int = field(default=0, init=False)
    images: set[object] = field(default_factory=set, init=False)
    empty_masks: list[str] = field(default_factory=list, init=False)
    duplicates: list[str] = field(default_factory=list, init=False)
    long_prompts: list[str] = field(default_factory=list, init=False)
    _first: dict[str, str] = field(default_factory=dict, init=False)

    def add(self, row: Mapping[str, Any], image_key: object, image: np.ndarray, mask: np.ndarray) -> None:
        """
        Counts one row.

        Args:
            row (`Mapping[str, Any]`): its img_name, mask_name and prompts.
            image_key (`object`): equal for rows of one image.
            image (`np.ndarray`): the image's pixels.
            mask (`np.ndarray`): its mask.
        """
        self.rows += 1
        if image_key not in self.images:
            self.images.add(image_key)
            digest = image_digest(image)
            if digest in self._first:
                self.duplicates.append(f"{row['img_name']} = {self._first[digest]}")
            self._first.setdefault(digest, row["img_name"])
        if not mask.any():
            self.empty_masks.append(row["mask_name"])
        texts = [text for value in row["prompts"].values() for text in ([value] if isinstance(value, str) else value)]
        lengths = [len(ids) for ids in self.tokenizer(texts, truncation=False, verbose=False).input_ids]
        limit = self.tokenizer.model_max_length
        self.long_prompts += [text for text, length in zip(texts, lengths, strict=True) if length > limit]

    def report(self) -> str:
        """The counts in one line, and below it up to `NAMED` of each kind of problem by name."""
        limit = f"over {self.tokenizer.model_max_length} tokens of {self.tokenizer.name_or_path}"
        lines = [
            f"images {len(self.images)}, rows {self.rows}, empty masks {len(self.empty_masks)}, "
            f"duplicates {len(self.duplicates)} (images by content), "
            f"over-long prompts {len(self.long_prompts)} ({limit})"
        ]
        for kind, names in (
            ("empty mask", self.empty_masks),
            ("duplicate", self.duplicates),
            ("over-long prompt", self.long_prompts),
        ):
            lines += [f"  {kind}: {name}" for name in names[:NAMED]]
            if len(names) > NAMED:
                lines.append(f"  and {len(names) - NAMED} more")
        return "\n".join(lines)


def check_written(folder: Path, check: Check) -> None:
    """
    Counts over a data set that is in the MedVLSM layout already.

    Raises:
        InputError: its rows or files cannot be used.
    """
    for split in SPLITS:
        for row in tqdm(read_annotations(folder, split), desc=f"checking {split}", unit="mask"):
            image, mask = open_pair(row.image, row.mask)
            names = {"img_name": row.image.name, "mask_name": row.mask.name, "prompts": row.prompts}
            check.add(names, row.image, np.asarray(image), mask)
