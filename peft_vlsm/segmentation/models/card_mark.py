"""
Which `README.md` of an output folder may be replaced: nobody's work must be lost.

Replaced are peft's own template, as `save_pretrained` writes it and `peft_vlsm.tuners.model_card` amends it, and a
card of ours that still says what we wrote: its last line is a comment with the SHA-256 of the lines above it.
"""

import hashlib
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from peft_vlsm.tuners.model_card import UNWRITTEN

CARD = "README.md"
_MARK = re.compile(r"<!-- written by peft_vlsm; edit it freely, an edited card is kept \((\w+)\) -->\s*\Z")
_PEFT_KEYS, _PEFT_TAGS = {"base_model", "library_name", "tags"}, {"transformers", "lora"}


def marked(text: str) -> str:
    """Adds the line by which [`is_replaceable`] knows the card again."""
    return f"{text}\n<!-- written by peft_vlsm; edit it freely, an edited card is kept ({_digest(text)}) -->\n"


def is_replaceable(file: Path) -> bool:
    """
    Whether a card may be replaced.

    Args:
        file (`Path`): an existing `README.md`.

    Returns:
        `bool`: True for an empty file, for peft's template and for a card of ours, where nothing in it was changed.
    """
    try:
        text = file.read_text(encoding="utf-8")
        mark = _MARK.search(text)
        return not text.strip() or (_is_pefts(text) if mark is None else _digest(text[: mark.start()]) == mark[1])
    except (UnicodeDecodeError, ValueError, yaml.YAMLError):
        # Neither peft nor we write such a file.
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _is_pefts(text: str) -> bool:
    if not text.startswith("---"):
        return False
    card = ModelCard(text, ignore_metadata_errors=True)
    data = card.data.to_dict()
    tags = [tag for tag in data.get("tags", []) if not tag.startswith("base_model:adapter:")]
    body = re.sub(r"```python\nimport peft_vlsm.*?```", lambda _: UNWRITTEN, card.text, count=1, flags=re.DOTALL)
    body = re.sub(r"### Framework versions\s+- PEFT \S+\s*\Z", "", body)
    template = ModelCard.from_template(ModelCardData()).text
    return data.keys() <= _PEFT_KEYS and _PEFT_TAGS.issuperset(tags) and body.split() == template.split()
