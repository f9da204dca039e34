"""Tiny real models, one row a family, and what the tuner tests feed them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig

REFERENCE = Path(__file__).parent / "reference"
CONFIGS = {"dense": DenseAdapterConfig, "shallow": ShallowAdapterConfig}
VARIANTS = ("V", "L", "C", "VL", "VC", "LC", "VLC")


def best_attention(model_class: type) -> str:
    """GroupViT has eager attention alone, and in transformers 4.57 CLIPSeg and OWL-ViT too."""
    return "sdpa" if model_class._supports_sdpa else "eager"


def tiny_clipseg(seed: int = 0, attention: str | None = None, **changes: object) -> CLIPSegForImageSegmentation:
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
    config._attn_implementation = attention or best_attention(CLIPSegForImageSegmentation)
    return visible(CLIPSegForImageSegmentation(config))


def image_size_of(model: nn.Module) -> int:
    """The side of the images that a tiny model takes; SigLIP 2, which takes patches, names none."""
    vision = model.config.vision_config
    return vision.image_size if "image_size" in vision.to_dict() or model.config.model_type == "sam3" else 32


def clipseg_inputs(model: nn.Module, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with prompts of different lengths, padded, and masks for the model's own loss."""
    generator = torch.Generator().manual_seed(seed)
    size, eos = image_size_of(model), model.config.text_config.eos_token_id
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


TEXT = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 63, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def visible(model: nn.Module) -> nn.Module:
    """Random weights large enough that every layer matters, in eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.15)
    return model.eval()


def tiny(name: str, frozen: bool = False, **settings: Any) -> Callable[..., nn.Module]:
    """A builder of a random model of a class of transformers, from the settings of its config."""

    def build(seed: int = 0, attention: str | None = None) -> nn.Module:
        model_class = getattr(transformers, name)
        torch.manual_seed(seed)
        config = model_class.config_class(**settings)
        config._attn_implementation = attention or best_attention(model_class)
        return visible(model_class(config)).requires_grad_(not frozen)

    return build


def tiny_sam3(seed: int = 0, attention: str = "sdpa") -> nn.Module:
    """A random SAM3 with a windowed and a global layer."""
    if find_spec("transformers.models.sam3") is None:
        pytest.skip(f"SAM3 needs transformers 5, and this is {transformers.__version__}")
    # The package's own name asks for torchvision, which only its image processor needs.
    from transformers.models.sam3.modeling_sam3 import Sam3Config, Sam3Model

    torch.manual_seed(seed)
    hidden = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_layers": 2, "dropout": 0.0}
    backbone = {**VISION, "model_type": "sam3_vit_model", "image_size": 64, "pretrain_image_size": 32}
    config = Sam3Config(
        vision_config={
            "backbone_config": {**backbone, "window_size": 4, "global_attn_indexes": [1], "num_hidden_layers": 3},
            "fpn_hidden_size": 32,
        },
        text_config={**TEXT, "model_type": "clip_text_model", "projection_dim": 16},
        geometry_encoder_config=hidden,
        detr_encoder_config=hidden,
        detr_decoder_config={**hidden, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    config._attn_implementation = attention
    return visible(Sam3Model(config))


def prompt_inputs(model: nn.Module, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Images and prompts, for families without a loss of their own for masks."""
    inputs = clipseg_inputs(model, batch, seed)
    del inputs["labels"]
    return inputs


def patch_inputs(model: nn.Module, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """SigLIP 2 takes an image as patches, here 4 x 4 of them, with its shape."""
    inputs = prompt_inputs(model, batch, seed)
    patches = inputs["pixel_values"].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    return {
        **inputs,
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(batch, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * batch),
    }


def query_inputs(model: nn.Module, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two queries an image, as OWL-ViT takes them: one after the other in the batch of prompts."""
    inputs, second = prompt_inputs(model, batch, seed), prompt_inputs(model, batch, seed + 1)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.stack([inputs[name], second[name]], dim=1).flatten(0, 1)
    return inputs


@dataclass(frozen=True)
class Family:
    """One family: a tiny model, its inputs, the variants that each tuner has, and what of the output counts."""

    name: str
    build: Callable[..., nn.Module]
    inputs: Callable[..., dict[str, torch.Tensor]]
    variants: dict[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    forward: dict[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """All that counts of the model's own output, in float32, one row a sample."""
        output = model(**{name: value for name, value in inputs.items() if name != "labels"}, **self.forward)
        parts = [output[name].float() for name in self.outputs]
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)

    def loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The model's own loss where it takes labels, else each value of a sample pulled to a target of its own."""
        if "labels" in inputs:
            return model(**inputs).loss
        output = self.run(model, inputs)
        return (output - torch.linspace(-1, 1, output.shape[1])).square().mean()


SOME = ("V", "L", "C", "VLC")
# SigLIP pools by nn.MultiheadAttention, which computes in another way where its weights require a gradient.
SIGLIP_TEXT = {**TEXT, "projection_size": 32}
FAMILIES = (
    Family("clipseg", tiny_clipseg, clipseg_inputs, {"dense": VARIANTS, "shallow": VARIANTS}, ("logits",)),
    Family(
        "sam3",
        tiny_sam3,
        prompt_inputs,
        {"dense": SOME, "shallow": ("V", "C", "VC")},
        ("semantic_seg", "presence_logits"),
    ),
    Family(
        "groupvit",
        tiny(
            "GroupViTModel",
            vision_config={
                **VISION,
                "depths": [1, 1, 1],
                "num_group_tokens": [4, 2, 0],
                "num_output_groups": [4, 2, 2],
            },
            text_config=TEXT,
            projection_dim=16,
            projection_intermediate_dim=20,
        ),
        prompt_inputs,
        {"dense": SOME, "shallow": ("C",)},
        ("segmentation_logits",),
        {"output_segmentation": True},
    ),
    Family(
        "owlvit",
        tiny("OwlViTForObjectDetection", vision_config=VISION, text_config=TEXT, projection_dim=24),
        query_inputs,
        {"dense": SOME, "shallow": ("C",)},
        ("logits", "pred_boxes"),
    ),
    Family(
        "owlv2",
        tiny("Owlv2ForObjectDetection", vision_config=VISION, text_config=TEXT, projection_dim=24),
        query_inputs,
        {"dense": SOME, "shallow": ("C",)},
        ("logits", "pred_boxes"),
    ),
    Family(
        "clip",
        tiny("CLIPModel", vision_config=VISION, text_config=TEXT, projection_dim=16),
        prompt_inputs,
        {"dense": SOME, "shallow": ("C",)},
        ("logits_per_image",),
    ),
    Family(
        "siglip",
        tiny("SiglipModel", frozen=True, vision_config=VISION, text_config=SIGLIP_TEXT),
        prompt_inputs,
        {"dense": ("V", "L", "VL")},
        ("logits_per_image",),
    ),
    Family(
        "siglip2",
        tiny("Siglip2Model", frozen=True, vision_config={**VISION, "num_patches": 16}, text_config=SIGLIP_TEXT),
        patch_inputs,
        {"dense": ("V", "L", "VL")},
        ("logits_per_image",),
    ),
    Family(
        "metaclip_2",
        tiny("MetaClip2Model", vision_config=VISION, text_config=TEXT, projection_dim=16),
        prompt_inputs,
        {"dense": SOME, "shallow": ("C",)},
        ("logits_per_image",),
    ),
)
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
