"""
`pipeline("text-prompted-segmentation", model=...)` of transformers: images and prompts in, masks and scores out.

transformers reads an adapter's folder as its base model's and would load it by its own ways. What it is told to load
here is a name ([`SegmenterName`]), and the pipeline itself loads what stands behind it, as all scripts do.
"""

import copy
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import Pipeline
from transformers.utils.peft_utils import find_adapter_config_file

from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import load_base, load_finetuned
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.models.segmenter import family_of
from peft_vlsm.segmentation.prediction.image_inputs import ImageInput
from peft_vlsm.segmentation.prediction.predictor import Prediction, Query, long_prompts, predict

TASK = "text-prompted-segmentation"
BATCH_SIZE = 8
# What transformers passes to every model; the rest of its settings would be lost and is refused.
_OF_TRANSFORMERS = ("_from_pipeline", "_commit_hash", "trust_remote_code", "code_revision", "token", "dtype")


class SegmenterName(torch.nn.Module):
    """
    Stands for a model that the pipeline is about to load; a module, since transformers 4.57 asks of which framework.

    Args:
        name (`str`): a folder or a name on the Hub.
        settings (`dict[str, Any]`, *optional*): what transformers was asked to load it with.
    """

    def __init__(self, name: str, settings: dict[str, Any] | None = None):
        super().__init__()
        self.name, self.settings = name, settings or {}
        self.config = SimpleNamespace(_commit_hash=None, task_specific_params=None)

    @classmethod
    def from_pretrained(cls, name: str, **settings: Any) -> "SegmenterName":
        """Loads nothing; transformers would pass over an error here and load the base model instead."""
        return cls(name, settings)


# Its methods are typed for one dictionary of tensors from step to step.
_Pipeline: Any = Pipeline


class TextPromptedSegmentationPipeline(_Pipeline):
    """
    Segments images by text prompts.

    `pipeline("text-prompted-segmentation", model=...)` makes one after `import peft_vlsm`, and
    [`text_prompted_segmentation`] does without transformers' own search for the model.

    Args:
        model: a [`SegmenterName`], or a loaded model of a family with masks, with or without adapters.
        processor ([`Processor`] or [`~transformers.ProcessorMixin`], *optional*): beside a loaded model.
        tokenizer, image_processor (*optional*): beside a loaded model, instead of `processor`.
        base (`str`, *optional*): the base model's folder or name, where it is not what the adapter names.
        image_size (`int`, *optional*): side in pixels of the square that images are stretched to. Default: the
            processor's.
        kwargs: of [`~transformers.Pipeline`], such as `device`, and `threshold`, `batch_size` and `probabilities` as
            defaults for every call.

    Raises:
        InputError: the model cannot be loaded, gives no text-prompted masks, or has no processor.
    """

    _load_processor = _load_image_processor = _load_video_processor = False
    _load_feature_extractor = _load_tokenizer = False

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        tokenizer: Any = None,
        image_processor: Any = None,
        base: str | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ):
        if isinstance(model, SegmenterName):
            model, processor = _load(model, base, image_size)
        elif base is not None:
            raise InputError(f"base={base!r} is for a model that is given by its name; leave it out")
        else:
            family_of(model)
            processor = _processor_of(processor, tokenizer, image_processor)
        fit_processor(processor, model.config, image_size)
        super().__init__(
            model.eval(), tokenizer=processor.tokenizer, image_processor=processor.image_processor, **kwargs
        )
        self.prepares = processor

    def _sanitize_parameters(
        self, threshold: float | None = None, probabilities: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if threshold is not None:
            number = isinstance(threshold, Real) and not isinstance(threshold, bool)
            if not number or not 0 <= threshold <= 1:
                raise InputError(f"threshold {threshold!r} must be a number between 0 and 1")
        given = {"threshold": threshold, "probabilities": probabilities}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def __call__(
        self,
        images: Any,
        prompt: str | Sequence[str] | None = None,
        prompts: str | Sequence[str] | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        probabilities: bool | None = None,
    ) -> list[Any]:
        """
        Asks for every prompt on every image. Each image and each prompt is embedded once a call.

        Args:
            images (`PIL.Image.Image`, `str`, `Path`, `np.ndarray`, or a list of these): a picture, its file (DICOM,
                too), its address on the web (`https://...`), or an array of shape `(height, width)` or `(height,
                width, 3)` and type `uint8`. A picture that a camera took on its side is turned upright.
            prompt, prompts (`str` or `list[str]`): what to segment; one of the two names is given.
            threshold (`float`, defaults to 0.5): a pixel belongs to a mask where its probability is above this.
            batch_size (`int`, defaults to 8): pairs of image and prompt that go through the model at once.
            probabilities (`bool`, defaults to `False`): whether to give the probabilities, too.

        Returns:
            `list[dict]` for one image, with an entry a prompt; `list[list[dict]]` for a list of images. An entry has

            - `prompt` (`str`);
            - `mask` (`PIL.Image.Image`): mode L, 255 where the mask is, at the image's own size;
            - `score` (`float`): the mean probability inside the mask, 0 where it is empty; for SAM3 times `presence`;
            - `presence` (`float`): the probability that the image has what the prompt names. SAM3 alone says it;
            - `probabilities` (`np.ndarray` of shape `(height, width)`, float32): where asked for.

        Raises:
            InputError: an image or a prompt cannot be used; the message says which.
        """
        wanted = _prompts_of(prompt, prompts)
        settings = {**self._postprocess_params, **self._sanitize_parameters(threshold, probabilities)[2]}
        several = isinstance(images, (list, tuple))
        given = list(images) if several else [images]
        results: list[list[dict[str, Any]]] = [[] for _ in given]
        for prediction in self.ask(given, wanted, batch_size):
            results[prediction.source.number].append(self.postprocess(prediction, wanted, **settings))
        return results if several else results[0]

    def ask(self, images: list[Any], prompts: list[str], batch_size: int | None = None) -> Iterator[Prediction]:
        """
        Asks as a call does, and gives the logits: [`entry_of`] makes entries of them, by any threshold.

        Args:
            images (`list`): see `__call__`.
            prompts (`list[str]`): likewise.
            batch_size (`int`, *optional*): likewise.

        Yields:
            [`Prediction`]: of the first image with each prompt, then of the second, and so on; `source.number` is the
            image's place.

        Raises:
            InputError: as a call.
        """
        wanted = _prompts_of(prompts, None)
        size = (self._batch_size or BATCH_SIZE) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"batch_size {size!r} must be a whole number above 0")
        return self._forward(self.preprocess(images, len(wanted)), wanted, size)

    def preprocess(self, images: list[Any], prompts: int) -> list[Query]:
        """Each image, not read yet, with every prompt."""
        sources = [ImageInput(number, image) for number, image in enumerate(images)]
        return [Query(source, source.read, range(prompts)) for source in sources]

    def _forward(self, queries: list[Query], prompts: list[str], batch_size: int) -> Iterator[Prediction]:
        for prompt in long_prompts(self.prepares, prompts):
            limit = self.prepares.tokenizer.model_max_length
            warnings.warn(f"only the first {limit} tokens of the prompt {prompt!r} count", stacklevel=4)
        return predict(cast(Any, self.model), self.prepares, queries, prompts, batch_size)

    def postprocess(
        self, prediction: Prediction, prompts: list[str], threshold: float = 0.5, probabilities: bool = False
    ) -> dict[str, Any]:
        """One entry of the answer, see [`entry_of`]."""
        return entry_of(prediction, prompts[prediction.prompt], threshold, probabilities)


def entry_of(prediction: Prediction, prompt: str, threshold: float, probabilities: bool = False) -> dict[str, Any]:
    """
    What a call of the pipeline answers to one image and one prompt. Needs no model: any threshold may follow.

    Args:
        prediction ([`Prediction`]): of [`TextPromptedSegmentationPipeline.ask`].
        prompt (`str`): its prompt.
        threshold (`float`): as in a call.
        probabilities (`bool`, defaults to `False`): as in a call.

    Returns:
        `dict[str, Any]`: as in a call.
    """
    values = prediction.logits.sigmoid().numpy()
    # Compared as logits in float64: 0.5 is exactly 0, and probabilities near 1 round to it.
    cut = torch.tensor(threshold, dtype=torch.float64).logit().item()
    mask = prediction.logits.numpy() > np.float32(cut)
    score = float(values[mask].mean(dtype=np.float64)) if mask.any() else 0.0
    result = {
        "prompt": prompt,
        "mask": Image.fromarray(mask.astype(np.uint8) * 255),
        "score": score if prediction.presence is None else score * prediction.presence,
    }
    if prediction.presence is not None:
        result["presence"] = prediction.presence
    return result | {"probabilities": values} if probabilities else result


def text_prompted_segmentation(
    model: Any,
    processor: Any = None,
    base: str | None = None,
    image_size: int | None = None,
    device: int | str | torch.device | None = None,
    **settings: Any,
) -> TextPromptedSegmentationPipeline:
    """
    Makes the pipeline by this package's own loading, which also takes what transformers cannot resolve, such as an
    adapter whose base model moved.

    Args:
        model (`str`, `Path` or a loaded model): an output folder of any method, an adapter's folder or its name on the
            Hub, a base model's folder or name, or a loaded model.
        processor ([`Processor`] or [`~transformers.ProcessorMixin`], *optional*): beside a loaded model.
        base (`str`, *optional*): the base model's folder or name, where it is not what the adapter names.
        image_size (`int`, *optional*): side in pixels of the images' square. Default: the one of training.
        device (`int`, `str` or `torch.device`, *optional*): default: the first accelerator, else the CPU.
        settings: `threshold`, `batch_size` and `probabilities`, defaults of every call.

    Returns:
        [`TextPromptedSegmentationPipeline`]: ready to be called.

    Raises:
        InputError: the model cannot be loaded, or has no processor.

    Example:

    ```py
    >>> segment = text_prompted_segmentation("out")
    >>> segment("scan.png", prompts=["grey matter", "white matter"])[0]["mask"].save("mask.png")
    ```
    """
    named = SegmenterName(str(model)) if isinstance(model, (str, Path)) else model
    return TextPromptedSegmentationPipeline(
        named, processor=processor, base=base, image_size=image_size, task=TASK, device=device, **settings
    )


def _load(named: SegmenterName, base: str | None, image_size: int | None) -> tuple[Any, Processor]:
    name, settings = named.name, named.settings
    lost = [key for key, value in settings.items() if key not in _OF_TRANSFORMERS and value]
    if lost:
        raise InputError(
            f"{lost[0]}={settings[lost[0]]!r} is not for this pipeline; download {name} so and give its folder"
        )
    local = os.path.exists(name)
    if not local and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name):
        raise InputError(f"model {name!r} does not exist; name a folder, or OWNER/NAME on the Hub")
    if local or base is not None or find_adapter_config_file(name) is not None:
        model, processor = load_finetuned(name, base, image_size)
    else:
        model, processor = load_base(name, image_size)
    dtype = settings.get("dtype")
    return (cast(Any, model).to(dtype) if isinstance(dtype, torch.dtype) else model), processor


def _processor_of(processor: Any, tokenizer: Any, image_processor: Any) -> Processor:
    if isinstance(processor, (Processor, ProcessorMixin)):
        tokenizer, image_processor = cast(Any, processor).tokenizer, cast(Any, processor).image_processor
    if tokenizer is None or image_processor is None:
        raise InputError("a loaded model needs its processor: give processor=, or tokenizer= and image_processor=")
    # It is fitted to the model, which its owner may not want.
    return copy.deepcopy(Processor(image_processor, tokenizer))


def _prompts_of(prompt: Any, prompts: Any) -> list[str]:
    if (prompt is None) == (prompts is None):
        raise InputError("give what to segment as prompt= or as prompts=, in one of the two")
    given = prompts if prompt is None else prompt
    wanted = [given] if isinstance(given, str) else given
    if not isinstance(wanted, (list, tuple)) or not wanted:
        raise InputError(f"the prompts {given!r} are neither a text nor a list of texts")
    for text in wanted:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"the prompt {text!r} is empty or no text; say what to segment")
    return list(wanted)


PIPELINE_REGISTRY.register_pipeline(TASK, TextPromptedSegmentationPipeline, pt_model=cast(Any, SegmenterName))
