"""A model's tokenizer and image processor, for all families alike and without torchvision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer

from peft_vlsm.architectures import Architecture

# In transformers 4.57 the class of the bare name is the one that needs no torchvision.
_PIL_CLASS: Any = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
_TAKEN = ("size", "image_mean", "image_std", "resample", "do_resize", "do_rescale", "do_normalize", "rescale_factor")


@dataclass
class Processor:
    """
    Prepares images and prompts.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): stretches an image to a square and normalises it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): of the text encoder.
    """

    image_processor: Any
    tokenizer: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes both beside each other, where the processor classes of transformers find them."""
        # A tokenizer keeps the padding and the truncation of its last batch and would store them.
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def image_processor_settings(name: str) -> dict[str, Any]:
    """What the files of an image processor say, in a folder or on the Hub."""
    settings, _ = _PIL_CLASS.get_image_processor_dict(name)
    return settings


def load_processor(name: str, family: Architecture) -> Processor:
    """
    Loads both from a folder or from the Hub.

    Args:
        name (`str`): a folder, or a name on the Hub.
        family (`Architecture`): its mean, deviation and image size stand where the files do not say them.

    Returns:
        [`Processor`]: ready for [`fit_processor`].

    Raises:
        `OSError`, `ValueError`: files are missing or cannot be read.
    """
    stored = image_processor_settings(name)
    declared: dict[str, Any] = {"image_mean": family.image_mean, "image_std": family.image_std}
    if family.image_size is not None:
        declared["size"] = {"height": family.image_size, "width": family.image_size}
    settings = declared | {key: stored[key] for key in _TAKEN if stored.get(key) is not None}
    return Processor(_PIL_CLASS(**settings), _load_tokenizer(name))


def _load_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        # tokenizers raises Exception itself where a file makes no sense to it.
        if type(error) is not Exception:
            raise
        raise ValueError(f"tokenizer.json is broken ({error}); copy it again") from error
