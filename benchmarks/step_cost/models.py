"""A model at its full size with random weights, and a random batch: speed does not hang on what they are."""

from typing import Any

import torch
from transformers import AutoConfig, CLIPSegConfig, PreTrainedModel

from peft_vlsm.architectures import FAMILIES, Architecture
from peft_vlsm.architectures.declaration import config_value
from peft_vlsm.architectures.families import family_of_config, model_class_of
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import build_for_images, quiet_loading

from .settings import Arguments

# CIDAS/clipseg-rd64-refined; what is not named here is the class's default.
CLIPSEG_SIZES: dict[str, Any] = {
    "vision_config": {"image_size": 352, "patch_size": 16},
    "use_complex_transposed_convolution": True,
}


def read_config(args: Arguments) -> tuple[Architecture, Any, int]:
    """
    The configuration of the model that is measured.

    Returns:
        `tuple[Architecture, PretrainedConfig, int]`: its family, its configuration for the asked image size, and
        that size: the side of the images in pixels.

    Raises:
        InputError: there is none, or it takes no such images or prompts.
    """
    family, config = _published(args.model) if args.model is not None else _stored(str(args.model_name_or_path))
    assert family.patch_size is not None
    side = args.image_size or config_value(config, family.fixed_image_size or "vision_config.image_size")
    patch, tokens = config_value(config, family.patch_size), config.text_config.max_position_embeddings
    if side % patch:
        raise InputError(f"--image_size {side} must be a multiple of the model's patch size {patch}")
    if args.prompt_tokens > tokens:
        raise InputError(f"--prompt_tokens {args.prompt_tokens} must not be above {tokens}, the text encoder's most")
    model_class = model_class_of(family)
    if args.gradient_checkpointing and not model_class.supports_gradient_checkpointing:
        raise InputError(f"--gradient_checkpointing: transformers has none for a {family.name}; leave it out")
    build_for_images(config, family, side)
    return family, config, side


def _published(model_type: str) -> tuple[Architecture, Any]:
    family = next(family for family in FAMILIES if family.model_type == model_type)
    if model_type == "clipseg":
        return family, CLIPSegConfig(**CLIPSEG_SIZES)
    try:
        return family, model_class_of(family).config_class()
    except ImportError as error:
        raise InputError(f"--model {model_type} needs transformers 5") from error


def _stored(name: str) -> tuple[Architecture, Any]:
    try:
        with quiet_loading():
            family, config = family_of_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise InputError(f"--model_name_or_path {name} cannot be read: {error}") from error
    if family is None or family.masks is None:
        raise InputError(f"--model_name_or_path {name} is a {config.model_type}, which gives no text-prompted masks")
    return family, config


def build_model(family: Architecture, config: Any, seed: int) -> PreTrainedModel:
    """The model with seeded random weights: float32, on the CPU, in eval mode."""
    torch.manual_seed(seed)
    with quiet_loading():
        return model_class_of(family)(config).eval()


def make_batch(
    config: Any, side: int, rows: int, tokens: int, seed: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """
    Random images with a mask and a prompt each.

    Args:
        config (`PretrainedConfig`): the model's; says which tokens there are.
        side (`int`): of the images in pixels.
        rows (`int`): pairs of image and prompt.
        tokens (`int`): of every prompt, beginning and end included.
        seed (`int`): of all that is random.
        device (`torch.device`): where the batch shall be.

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values`, `masks`, `input_ids` and `attention_mask`.
    """
    generator = torch.Generator().manual_seed(seed)
    text = config.text_config
    words = [token for token in range(text.vocab_size) if token not in (text.bos_token_id, text.eos_token_id)]
    chosen = torch.randint(len(words), (rows, tokens), generator=generator)
    input_ids = torch.tensor(words)[chosen]
    input_ids[:, 0], input_ids[:, -1] = text.bos_token_id, text.eos_token_id
    batch = {
        "pixel_values": torch.randn(rows, 3, side, side, generator=generator),
        "masks": (torch.rand(rows, side, side, generator=generator) > 0.5).float(),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
    }
    return {name: value.to(device) for name, value in batch.items()}
