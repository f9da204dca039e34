"""What a fine-tuning run left in its output folder, read without loading a model: method, base model and results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from peft_vlsm.architectures import FAMILIES, Architecture
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import WEIGHT_FILES, kind_of

METHODS = {"VLSM_DENSE_ADAPTER": "dense", "VLSM_SHALLOW_ADAPTER": "shallow", "LORA": "lora", "IA3": "ia3"}


@dataclass(frozen=True)
class RunFolder:
    """
    An output folder of `examples/finetune.py`, see [`read_run`].

    Args:
        folder (`Path`): where it is.
        kind (`str`): `adapter`, `decoder` or `full`, a key of [`WEIGHT_FILES`].
        method (`str`): `dense`, `shallow`, `lora`, `ia3`, `decoder` or `full`, as the files say it.
        family (`Architecture`): the declaration of the base model.
        base_model (`str`, *optional*): the base model's folder or name, where it was recorded.
        settings (`dict[str, Any]`): the adapter's or the decoder's settings, or the model's configuration.
        results (`dict[str, Any]`): `all_results.json`; empty where the run did not reach its end.
    """

    folder: Path
    kind: str
    method: str
    family: Architecture
    base_model: str | None
    settings: dict[str, Any]
    results: dict[str, Any]

    @property
    def hub_base(self) -> str | None:
        """The base model's name on the Hub; None where it is a folder or not known."""
        return self.base_model if self.base_model is not None and is_hub_name(self.base_model) else None


def read_run(folder: str | Path) -> RunFolder:
    """
    Reads an output folder.

    Args:
        folder (`str` or `Path`): holds the files of one of [`WEIGHT_FILES`], and maybe `all_results.json`.

    Returns:
        [`RunFolder`]

    Raises:
        InputError: there is no fine-tuned model of a family that gives text-prompted masks, or a file is broken.
    """
    folder = Path(folder)
    kind = kind_of(folder)
    if kind is None:
        names = ", ".join(files[0] for files in WEIGHT_FILES.values())
        raise InputError(f"{folder} holds no fine-tuned model: none of {names} is there; name finetune.py's output")
    settings_file, weights_file = (folder / name for name in WEIGHT_FILES[kind][:2])
    settings, tensors = _read_json(settings_file), _tensor_names(weights_file)
    results_file = folder / "all_results.json"
    results = _read_json(results_file) if results_file.is_file() else {}
    return RunFolder(
        folder=folder,
        kind=kind,
        method=_method(settings, settings_file) if kind == "adapter" else kind,
        family=_family(kind, settings, tensors, settings_file),
        base_model=settings.get("base_model_name_or_path") or results.get("model_name_or_path"),
        settings=settings,
        results=results,
    )


def is_hub_name(name: str) -> bool:
    """Whether this may be a name on the Hub and is no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}; train again, or copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object; train again, or copy it again")
    return content


def _tensor_names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is no safetensors file: {error}; train again, or copy it again") from error


def _method(settings: dict[str, Any], file: Path) -> str:
    peft_type = settings.get("peft_type")
    if peft_type not in METHODS:
        raise InputError(f"{file} has the peft_type {peft_type}; allowed: {', '.join(METHODS)}")
    return METHODS[peft_type]


def _family(kind: str, settings: dict[str, Any], tensors: list[str], file: Path) -> Architecture:
    segmenting = [family for family in FAMILIES if family.masks is not None]
    if kind == "adapter":
        name = (settings.get("auto_mapping") or {}).get("base_model_class")
        found = [family for family in segmenting if family.model_class == name]
    elif kind == "decoder":
        # An adapter names its base model's class; a decoder shows its family in the names of its weights.
        name = tensors[0] if tensors else "no weights"
        found = [family for family in segmenting if name.startswith(tuple(f"{head}." for head in family.head))]
    else:
        name = settings.get("model_type")
        found = [family for family in segmenting if family.model_type == name]
    if not found:
        names = ", ".join(family.name for family in segmenting)
        raise InputError(f"{file} is of {name}, which is none of the models with text-prompted masks: {names}")
    return found[0]
