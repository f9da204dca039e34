"""Tiny segmenters of several families on disk, each with a tokenizer and an image processor that fit."""

from pathlib import Path

from builders import TOKENS, move_trainable_weights, pil_processor, tiny_processor
from models import FAMILIES, TEXT, tiny_sam3, visible
from peft import get_peft_model

from peft_vlsm.segmentation.models.finetuned import load_base, save_finetuned

SAM3_IMAGE_SIZE = 64


def sam3_model(seed: int = 0):
    """A random SAM3 whose text encoder takes the tokens of `builders.tiny_processor`."""
    return _reading_letters(tiny_sam3(seed))


def _reading_letters(model):
    tokenizer = tiny_processor().tokenizer
    config = model.config
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return visible(type(model)(config))


def write_sam3_model(folder: Path, seed: int = 0) -> Path:
    """Saves a tiny SAM3 for images of 64 pixels a side, its tokenizer and its image processor."""
    sam3_model(seed).save_pretrained(folder)
    tiny_processor().tokenizer.save_pretrained(folder)
    size = {"height": SAM3_IMAGE_SIZE, "width": SAM3_IMAGE_SIZE}
    settings = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pil_processor("ViTImageProcessor")(**settings).save_pretrained(folder)
    return folder


def write_groupvit_model(folder: Path) -> Path:
    """Saves a tiny GroupViT for images of 32 pixels a side, its tokenizer and its image processor."""
    groupvit = next(family for family in FAMILIES if family.name == "groupvit")
    _reading_letters(groupvit.build()).save_pretrained(folder)
    tiny_processor().tokenizer.save_pretrained(folder)
    tiny_processor().image_processor.save_pretrained(folder)
    return folder


def write_finetuned(folder: Path, base: Path, kinds: dict) -> Path:
    """
    Saves output folders of the tiny CLIPSeg, with weights that training has moved.

    Args:
        folder (`Path`): where each gets a folder of its own.
        base (`Path`): the base model.
        kinds (`dict`): an adapter's config by the folder's name; None for `"decoder"` and `"full"`.
    """
    for kind, config in kinds.items():
        model, processor = load_base(str(base))
        if config is not None:
            model = get_peft_model(model, config)
        elif kind == "decoder":
            model.requires_grad_(False).decoder.requires_grad_(True)
        move_trainable_weights(model)
        save_finetuned(model, processor, folder / kind)
    return folder
