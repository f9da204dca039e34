"""Tiny real models, one row a family, and what the tuner tests feed them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig

REFERENCE = Path(__file__).parent / "reference"
CONFIGS = {"dense": DenseAdapterConfig, "shallow": ShallowAdapterConfig}
VARIANTS = ("V", "L", "C", "VL", "VC", "LC", "VLC")


def tiny_clipseg(seed: int = 0, attention: str = "sdpa", **changes: object) -> CLIPSegForImageSegmentation:
    """A random CLIPSeg with a right end-of-text id and weights large enough that every layer matters."""
    settings = {
        "extract_layers": [1, 3],
        "projection_dim": 24,
        "reduce_dim": 8,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        "text_config": {
            "vocab_size": 64, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 5,
            "num_attention_heads": 2, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 63,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
    }  # fmt: skip
    settings.update(changes)
    torch.manual_seed(seed)
    config = CLIPSegConfig(**settings)
    config._attn_implementation = attention
    model = CLIPSegForImageSegmentation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.15)
    return model.eval()


def clipseg_inputs(model: nn.Module, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with prompts of different lengths, padded, and masks for the model's own loss."""
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vision_config.image_size
    eos = model.config.text_config.eos_token_id
    input_ids = torch.zeros(batch, 8, dtype=torch.long)
    for row in range(batch):
        length = 4 + row % 4
        input_ids[row, 0] = 1
        input_ids[row, 1:length] = torch.randint(2, 60, (length - 1,), generator=generator)
        input_ids[row, length] = eos
    return {
        "pixel_values": torch.randn(batch, 3, size, size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "labels": (torch.rand(batch, size, size, generator=generator) > 0.5).float(),
    }


@dataclass(frozen=True)
class Family:
    """One family: how to build a tiny model, its inputs, and which variants each tuner has."""

    name: str
    build: Callable[..., nn.Module]
    inputs: Callable[..., dict[str, torch.Tensor]]
    variants: dict[str, tuple[str, ...]]


FAMILIES = (Family("clipseg", tiny_clipseg, clipseg_inputs, {"dense": VARIANTS, "shallow": VARIANTS}),)
# One row for each family, tuner and variant: the table that most tests run through.
ADAPTED = [
    (family, tuner, variant)
    for family in FAMILIES
    for tuner, variants in family.variants.items()
    for variant in variants
]
ADAPTED_IDS = [f"{family.name}-{tuner}-{variant}" for family, tuner, variant in ADAPTED]


def reference_case(model_name: str, tuner: str, variant: str) -> tuple[nn.Module, dict[str, torch.Tensor], dict]:
    """The model, inputs and figures of the paper's code, from tests/reference."""
    folder = REFERENCE / model_name
    model = CLIPSegForImageSegmentation.from_pretrained(folder / "base")
    return model, load_file(folder / "inputs.safetensors"), load_file(folder / f"{tuner}_{variant}.safetensors")
