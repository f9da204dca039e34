"""What the model card of an adapter must say: `import peft_vlsm` comes before loading it."""

from pathlib import Path

from huggingface_hub import ModelCard

HEADING = "## How to Get Started with the Model"
UNWRITTEN = "Use the code below to get started with the model.\n\n[More Information Needed]"


def add_snippet(folder: str, peft_type: str, loads_alone: bool) -> None:
    """
    Adds the lines that load an adapter to the card that peft wrote for it, once.

    Args:
        folder (`str`): the adapter's. The card of a named adapter, in a folder of its own, lies one above.
        peft_type (`str`): the adapter's type, which is what peft's `KeyError` names.
        loads_alone (`bool`): whether the adapter's settings name the base model and its class.
    """
    for file in (Path(folder) / "README.md", Path(folder).parent / "README.md"):
        if not file.is_file():
            continue
        card = ModelCard.load(file, ignore_metadata_errors=True)
        if card.data.to_dict().get("library_name") == "peft":
            if "import peft_vlsm" not in card.text:
                card.text = _with_snippet(card.text, _snippet(peft_type, loads_alone))
                card.save(file)
            return


def _snippet(peft_type: str, loads_alone: bool) -> str:
    loader, base = ("AutoPeftModel", "") if loads_alone else ("PeftModel", "base_model, ")
    return f"""```python
import peft_vlsm  # first: else peft ends in KeyError: '{peft_type}'
from peft import {loader}

adapter = "this adapter's folder, or its name on the Hub"
model = {loader}.from_pretrained({base}adapter)
```"""


def _with_snippet(text: str, snippet: str) -> str:
    if UNWRITTEN in text:
        return text.replace(UNWRITTEN, snippet, 1)
    return f"{text.rstrip()}\n\n{HEADING}\n\n{snippet}\n"
