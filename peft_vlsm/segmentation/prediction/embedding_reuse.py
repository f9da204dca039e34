"""
Each image and each prompt is embedded once, however many pairs of them a model is asked for.

Every pair is a row of a batch. The two methods that embed a batch row by row, which the family declares, remember what
they gave for an image or a prompt, run on the rows that are new to them alone, and put the rest together. The model's
own forward does everything else, so adapters in, before and after the encoders count as ever.
"""

from collections.abc import Hashable, Sequence
from types import TracebackType
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from peft_vlsm.architectures.families import hosts_of
from peft_vlsm.architectures.overrides import MethodOverride
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.segmenter import SegmenterOutput, run_segmenter


class EmbeddingReuse:
    """
    Runs a model on pairs of image and prompt; a context manager, which leaves the model as it was.

    Weights and active adapters must stay as they are inside the block, which keeps the embeddings of all its prompts
    and of the images of its last batch.

    Args:
        model (`torch.nn.Module`): of a family with masks, with or without adapters, in eval mode.

    Raises:
        InputError: the model gives no text-prompted masks.

    Example:

    ```py
    >>> with EmbeddingReuse(model) as reuse:
    ...     output = reuse.run(batch, images=["scan.png", "scan.png"], prompts=["grey matter", "white matter"])
    ```
    """

    def __init__(self, model: torch.nn.Module) -> None:
        found = [(host, family) for host, family in hosts_of(model) if family.masks is not None]
        if not found:
            raise InputError(f"a {type(model).__name__} gives no text-prompted masks")
        self.model = model
        self._host, self._family = found[0]
        self._images: _RowMemory | None = None
        self._prompts: _RowMemory | None = None

    def __enter__(self) -> "EmbeddingReuse":
        self._images = self._memory(self._family.image_embedding, keep_all=False)
        self._prompts = self._memory(self._family.text_embedding, keep_all=True)
        return self

    def _memory(self, path: str | None, keep_all: bool) -> "_RowMemory | None":
        if path is None:
            return None
        owner, _, name = path.rpartition(".")
        return _RowMemory(self._host.get_submodule(owner), name, keep_all)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for memory in (self._images, self._prompts):
            if memory is not None:
                memory.remove()

    @torch.no_grad()
    def run(
        self, batch: dict[str, torch.Tensor], images: Sequence[Hashable], prompts: Sequence[Hashable]
    ) -> SegmenterOutput:
        """
        Runs the model on a batch of pairs, without gradients.

        Args:
            batch (`dict[str, torch.Tensor]`): `pixel_values`, `input_ids` and `attention_mask`, a row a pair, on the
                model's device. Prompts of all batches are padded to one length.
            images (`Sequence[Hashable]`): which image each row has; equal keys stand for equal pixels.
            prompts (`Sequence[Hashable]`): which prompt each row has.

        Returns:
            [`SegmenterOutput`]: as [`run_segmenter`] gives it.
        """
        for memory, keys in ((self._images, images), (self._prompts, prompts)):
            if memory is not None:
                memory.keys = keys
        return run_segmenter(self.model, batch)


class _RowMemory(MethodOverride):
    """A method of a batch that runs once for each key of its rows."""

    def __init__(self, module: torch.nn.Module, name: str, keep_all: bool) -> None:
        super().__init__(module, name)
        self.keep_all = keep_all
        self.keys: Sequence[Hashable] = ()
        self.kept: dict[Hashable, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first = {key: row for row, key in reversed(list(enumerate(self.keys)))}
        new = sorted((key for key in first if key not in self.kept), key=first.__getitem__)
        if new:
            rows, size = [first[key] for key in new], len(self.keys)
            output = self.__wrapped__(*_take(args, rows, size), **_take(kwargs, rows, size))
            self.kept |= {key: _take(output, [row], len(new)) for row, key in enumerate(new)}
        output = _join([self.kept[key] for key in self.keys])
        if not self.keep_all:
            self.kept = {key: self.kept[key] for key in first}
        return output


def _take(value: Any, rows: list[int], size: int) -> Any:
    """The given rows of every tensor that has `size` of them, in whatever holds it."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and value.shape[0] == size else value
    return _rebuilt(value, [value], lambda parts: _take(parts[0], rows, size))


def _join(values: list[Any]) -> Any:
    """Puts rows below each other, tensor by tensor."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values) if values[0].dim() else values[0]
    return _rebuilt(values[0], values, _join)


def _rebuilt(kind: Any, values: list[Any], combine: Any) -> Any:
    if isinstance(kind, (ModelOutput, dict)):
        return type(kind)(**{name: combine([value[name] for value in values]) for name in kind})
    if isinstance(kind, (tuple, list)):
        return type(kind)(combine(list(parts)) for parts in zip(*values, strict=True))
    return kind
