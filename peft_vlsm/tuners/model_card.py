"""What the model card of an adapter must say: `import peft_vlsm` comes before loading it."""

from pathlib import Path

from huggingface_hub import ModelCard

HEADING = "## How to Get Started with the Model"
UNWRITTEN = "Use the code below to get started with the model.\n\n[More Information Needed]"


def add_snippet(folder: str, peft_type: str, base: str | None, auto_mapping: dict | None) -> None:
    """
    Adds the lines that load an adapter to the card that peft wrote for it, once.

    Args:
        folder (`str`): the adapter's. The card of a named adapter, in a folder of its own, lies one above.
        peft_type (`str`): the adapter's type, which is what peft's `KeyError` names.
        base (`str`, *optional*): the base model's name, where the adapter's settings have it.
        auto_mapping (`dict`, *optional*): the base model's class, likewise.
    """
    for file in (Path(folder) / "README.md", Path(folder).parent / "README.md"):
        if not file.is_file():
            continue
        card = ModelCard.load(file, ignore_metadata_errors=True)
        if card.data.to_dict().get("library_name") == "peft":
            if "import peft_vlsm" not in card.text:
                card.text = _with_snippet(card.text, _snippet(peft_type, base, auto_mapping))
                card.save(file)
            return


def _snippet(peft_type: str, base: str | None, auto_mapping: dict | None) -> str:
    lines = [f"import peft_vlsm  # first: else peft ends in KeyError: '{peft_type}'", "from peft import PeftModel"]
    # Not AutoPeftModel: beside a tokenizer it asks the base for text embeddings, which CLIPSeg has not.
    if base and auto_mapping:
        base_class = auto_mapping["base_model_class"]
        lines.append(f"from {auto_mapping['parent_library']} import {base_class}")
        lines += ["", f"base_model = {base_class}.from_pretrained({base!r})"]
    else:
        lines += ["", "# base_model is the model that the adapter was trained on."]
    lines.append('adapter = "this adapter\'s folder, or its name on the Hub"')
    lines.append("model = PeftModel.from_pretrained(base_model, adapter)")
    return "\n".join(["```python", *lines, "```"])


def _with_snippet(text: str, snippet: str) -> str:
    if UNWRITTEN in text:
        return text.replace(UNWRITTEN, snippet, 1)
    return f"{text.rstrip()}\n\n{HEADING}\n\n{snippet}\n"
