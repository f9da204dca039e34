"""How wide the tensor is that a module takes or gives: the size an adapter on it must have."""

from typing import Literal

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def width_of(module: nn.Module, side: Literal["input", "output"]) -> int:
    """
    The size of the last dimension of what a module takes or gives.

    Args:
        module (`nn.Module`):
            a linear layer, an embedding, a normalisation, `nn.MultiheadAttention`, or a module that contains linear
            layers: there the first one tells the input, the last one the output.
        side (`str`): `"input"` or `"output"`.

    Returns:
        `int`: the width in features.

    Raises:
        `ValueError`: if the module does not tell its width, or its features are not in the last dimension.
    """
    width = told_width(module, side)
    if width is None:
        raise ValueError(
            f"target_modules matches a {type(module).__name__}, whose {side} width is unknown; allowed: linear "
            "layers, embeddings, normalisations, nn.MultiheadAttention, and modules of linear layers without "
            "convolutions."
        )
    return width


def told_width(module: nn.Module, side: Literal["input", "output"]) -> int | None:
    """As [`width_of`], and None where the module does not tell it."""
    if isinstance(module, BaseTunerLayer):
        return told_width(module.get_base_layer(), side)
    if isinstance(module, ModulesToSaveWrapper):
        return told_width(module.original_module, side)
    width = _known_width(module, side)
    if width is not None:
        return width
    inner = [child for child in module.modules() if child is not module and isinstance(child, (nn.Linear, Conv1D))]
    # A trunk of convolutions keeps its features in the second dimension, also where it has linear layers inside.
    convolves = any(isinstance(child, CONVOLUTIONS) for child in module.modules())
    if not inner or convolves or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return None
    return told_width(inner[0 if side == "input" else -1], side)


def _known_width(module: nn.Module, side: Literal["input", "output"]) -> int | None:
    if isinstance(module, nn.Linear):
        return module.in_features if side == "input" else module.out_features
    if isinstance(module, Conv1D):
        return module.nx if side == "input" else module.nf
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return module.normalized_shape[-1]
    if isinstance(module, nn.Embedding) and side == "output":
        return module.embedding_dim
    return None
