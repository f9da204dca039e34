"""Tiny segmenters of several families on disk, each with a tokenizer and an image processor that fit."""

from pathlib import Path

from builders import TOKENS, pil_processor, tiny_processor
from models import TEXT, tiny_sam3, visible

SAM3_IMAGE_SIZE = 64


def sam3_model(seed: int = 0):
    """A random SAM3 whose text encoder takes the tokens of `builders.tiny_processor`."""
    model = tiny_sam3(seed)
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
