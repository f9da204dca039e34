"""
What a fine-tuning run saved, in a folder or on the Hub: settings are read from JSON, weights from safetensors alone.

Nothing is unpickled, and nothing is loaded by halves: settings of a newer version, numbers that are not finite, and
tensors that the model lacks, or lacks in this shape, are named.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from packaging.version import InvalidVersion, Version
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.tuners.config import VLSMAdapterConfig
from peft_vlsm.version import __version__

logger = logging.getLogger(__name__)
# The first is the root of the errors of the Hub client's HTTP library, whichever that is.
_HUB_ERRORS = (cast(type[Exception], HfHubHTTPError.__bases__[0]), OSError, RuntimeError, ValueError)
# How files of pickle and of torch.save begin.
_PICKLES = (b"\x80", b"PK\x03\x04")


def saved_file(path: str | Path, name: str) -> Path:
    """
    Finds a file of a fine-tuned model.

    Args:
        path (`str` or `Path`): its folder, or its name on the Hub.
        name (`str`): the file, such as `adapter_model.safetensors`.

    Raises:
        InputError: there is no such file. Other forms of the same weights are not looked for.
    """
    hint = "; weights load from safetensors alone, copy it there or save the model again"
    if Path(path).exists():
        file = Path(path, name)
        if not file.is_file():
            raise refusal(path, f"{name} is not there{hint if name.endswith('.safetensors') else ''}")
        return file
    try:
        return Path(hf_hub_download(str(path), name))
    except _HUB_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise refusal(path, f"the Hub gives no {name} of it ({reason}){hint}") from error


def refusal(path: str | Path, reason: str) -> InputError:
    """The error that says why a fine-tuned model is not loaded."""
    return InputError(f"the fine-tuned model {path} cannot be loaded: {reason}")


def read_adapter_config(path: str | Path) -> PeftConfig:
    """
    Reads an adapter's settings. This module's logger warns of fields that are unknown here, which are passed over, and
    of a newer peft_vlsm.

    Args:
        path (`str` or `Path`): the adapter's folder, or its name on the Hub.

    Raises:
        InputError: the file is missing or broken, its type is unknown or none for these models, or it is of a newer
            peft_vlsm and has fields that this one does not know: then they may change what the adapter computes.
    """
    file = saved_file(path, "adapter_config.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refusal(path, f"{file.name} is not valid JSON ({error}); copy it again") from error
    kind = content.get("peft_type") if isinstance(content, dict) else None
    config_cls = PEFT_TYPE_TO_CONFIG_MAPPING.get(cast(Any, kind)) if isinstance(kind, str) else None
    if config_cls is None or issubclass(config_cls, PromptLearningConfig):
        raise refusal(path, f"{file.name} has the peft_type {kind!r}, which is no adapter for these models here")
    known = {field.name for field in fields(config_cls)}
    unknown = sorted(content.keys() - known)
    if issubclass(config_cls, VLSMAdapterConfig):
        _check_version(path, content.get("plugin_version"), ", ".join(unknown))
    if unknown:
        logger.warning("%s has fields that are unknown here and do nothing: %s", file, ", ".join(unknown))
    try:
        return config_cls(**{name: value for name, value in content.items() if name in known})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise refusal(path, f"{file.name} has a wrong setting: {error}; copy it again") from error


def _check_version(path: str | Path, version: Any, unknown: str) -> None:
    if version is None:
        return
    try:
        newer = Version(str(version)) > Version(__version__)
    except InvalidVersion as error:
        raise refusal(path, f"its plugin_version {version!r} is no version of peft_vlsm") from error
    if newer and unknown:
        raise refusal(
            path,
            f"it is of peft_vlsm {version} and has fields that {__version__} does not know ({unknown}); update with "
            "pip install -U peft-vlsm",
        )
    if newer:
        logger.warning("%s is of peft_vlsm %s, and this is %s: its results may differ", path, version, __version__)


def load_weights(path: str | Path, name: str) -> dict[str, torch.Tensor]:
    """
    Reads weights.

    Args:
        path (`str` or `Path`): the folder, or the name on the Hub.
        name (`str`): the safetensors file.

    Returns:
        `dict[str, torch.Tensor]`: all of its tensors, on the CPU.

    Raises:
        InputError: the file is missing, is no safetensors file, or holds numbers that are not finite.
    """
    file = saved_file(path, name)
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        with file.open("rb") as opened:
            is_pickle = opened.read(4).startswith(_PICKLES)
        what = "a pickle, which is never loaded" if is_pickle else f"no safetensors file ({error})"
        raise refusal(path, f"{name} is {what}; copy it again, or save the model again as safetensors") from error
    check_finite(path, weights)
    return weights


def check_finite(path: str | Path, weights: Mapping[str, torch.Tensor]) -> None:
    """
    Checks weights for infinities and for what is no number.

    Raises:
        InputError: names the first such tensor, and counts the others.
    """
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        others = f" (and in {len(broken) - 1} more tensors)" if len(broken) > 1 else ""
        raise refusal(
            path, f"the numbers in {broken[0]} are not finite{others}; take an earlier checkpoint or train again"
        )


def fill_adapter(model: PeftModel, path: str | Path, weights: dict[str, torch.Tensor]) -> None:
    """
    Puts saved weights into a model's adapter, all of them and no others.

    Args:
        model ([`~peft.PeftModel`]): with one adapter, and the modules that are saved along with it.
        path (`str` or `Path`): where they are from, for messages.
        weights (`dict[str, torch.Tensor]`): by the names of the adapter's file.

    Raises:
        InputError: the file lacks tensors, or has some that the model does not or in another shape.
    """
    base = cast(Any, model.get_base_model()).name_or_path
    hint = "copy the file again, or give the model that it was trained on (--model_name_or_path)"
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    misfits = sorted(expected.keys() ^ weights.keys())
    if misfits:
        side = "the file lacks" if misfits[0] in expected else "the model lacks"
        raise InputError(
            f"{path} does not fit the base model {base}: {len(misfits)} weights have no counterpart, such as "
            f"{misfits[0]} ({side} it); {hint}"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, and {list(expected[name].shape)} in the model"
            raise InputError(f"{path} does not fit the base model {base}: size mismatch, {name} is {shapes}; {hint}")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            kinds = f"{tensor.dtype}, and {expected[name].dtype} in the model"
            raise InputError(f"{path} does not fit the base model {base}: {name} is {kinds}; {hint}")
    set_peft_model_state_dict(model, weights)
