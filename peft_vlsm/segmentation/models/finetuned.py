"""
Models on disk: the base model with its processor, and what a fine-tuning run leaves in its output folder.

| method | files |
| --- | --- |
| an adapter | `adapter_config.json`, `adapter_model.safetensors` |
| the decoder | `decoder_config.json` (names the base model), `decoder.safetensors`, `config.json` |
| the full model | `config.json`, `model.safetensors` |

The processor's files lie beside them.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from peft_vlsm.architectures import FAMILIES, Architecture
from peft_vlsm.architectures.declaration import config_value
from peft_vlsm.architectures.families import family_of_config, model_class_of
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.adapter_files import check_finite, fill_adapter, load_weights, read_adapter_config
from peft_vlsm.segmentation.models.card_mark import CARD, is_replaceable
from peft_vlsm.segmentation.models.processor import Processor, image_processor_settings, load_processor
from peft_vlsm.segmentation.models.segmenter import family_of
from peft_vlsm.tuners.text_states import OLD_END_OF_TEXT_ID

WEIGHT_FILES = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "decoder": ("decoder_config.json", "decoder.safetensors", "config.json"),
    "full": ("config.json", "model.safetensors"),
}
RESULT_FILES = ("all_results.json", "samples.png", "curves.png")
# What files of any content may raise, as they are read and as a model is built from them.
_UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError),
    *(SafetensorError, StrictDataclassError),
)


def load_base(name_or_path: str, image_size: int | None = None) -> tuple[PreTrainedModel, Processor]:
    """
    Loads a base model and its processor.

    Args:
        name_or_path (`str`): a folder, or a name on the Hub. An adapter remembers a folder by its absolute path.
        image_size (`int`, *optional*): side in pixels of the images that it will be given, for families that are
            built for one size (SAM3). Default: the checkpoint's own.

    Returns:
        `tuple[PreTrainedModel, Processor]`: the model in float32 and eval mode, and its processor.

    Raises:
        InputError: it cannot be loaded, is of a family that gives no text-prompted masks, or lacks weights. Pickled
            weights (`pytorch_model.bin`) are not loaded.
    """
    name = str(Path(name_or_path).resolve()) if Path(name_or_path).is_dir() else name_or_path
    try:
        with quiet_loading():
            # Else transformers asks on the terminal whether to run code that a model brings along.
            whole_config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            family, config = family_of_config(whole_config)
            if family is None or family.masks is None:
                allowed = ", ".join(family.model_type for family in FAMILIES if family.masks is not None)
                raise InputError(
                    f"the model {name} is of the kind {whole_config.model_type}; this works on {allowed} models"
                )
            build_for_images(config, family, image_size)
            model, info = model_class_of(family).from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                use_safetensors=True,
            )
            processor = _load_processor(name, model)
    except InputError:
        raise
    except _UNLOADABLE as error:
        raise InputError(
            f"the model {name_or_path} cannot be loaded, neither as a folder nor from the Hub: {error}"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"the model {name} lacks {len(missing)} weights, such as {missing[0]}")
    return model.eval(), processor


def build_for_images(config: Any, family: Architecture, image_size: int | None) -> None:
    """Sets the side in pixels that a model is built for, where its family is built for one and a side is given."""
    if image_size is not None and family.fixed_image_size is not None:
        *path, name = family.fixed_image_size.split(".")
        setattr(config_value(config, ".".join(path)), name, image_size)


def _load_processor(name: str, model: PreTrainedModel) -> Processor:
    processor = load_processor(name, family_of(model))
    tokenizer, text_config = processor.tokenizer, model.config.text_config
    # transformers builds a tokenizer of a few special tokens where its file is missing; bytes alone are 256 tokens.
    if not 256 <= len(tokenizer) <= text_config.vocab_size:
        raise InputError(
            f"the tokenizer in {name} has {len(tokenizer)} tokens and the model's text encoder "
            f"{text_config.vocab_size}; is tokenizer.json missing or another model's?"
        )
    if text_config.eos_token_id not in (OLD_END_OF_TEXT_ID, tokenizer.eos_token_id):
        raise InputError(
            f"the model's text encoder looks for the token {text_config.eos_token_id} at a prompt's end, which the "
            f"tokenizer in {name} never writes (it writes {tokenizer.eos_token_id})"
        )
    return processor


@contextmanager
def quiet_loading() -> Iterator[None]:
    """
    Keeps stderr, where our one line shall stand, free of what libraries say while a model is loaded or adapted.

    These are the Hub client's retries, transformers' tables of keys, and transformers' FutureWarning about a name by
    which peft 0.21 asks whether gradient checkpointing is on.
    """
    before = [(log, log.get_verbosity()) for log in (hub_logging, transformers_logging)]
    for log, _ in before:
        log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprec", category=FutureWarning)
            yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)


def make_output_dir(folder: Path) -> None:
    """
    Makes an output folder, before hours of work go into what it shall hold.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output_dir {folder} cannot be written; name another folder")


def save_finetuned(
    model: torch.nn.Module, processor: Processor, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """
    Writes what was trained, and the processor, into an output folder.

    Everything is written beside its place and then renamed, so that a process killed here leaves the former weights
    or the new ones. Results and weights that an earlier run left there, and that do not belong to the new weights,
    are removed. A model card that someone wrote or edited stays, see [`is_replaceable`].

    Args:
        model (`torch.nn.Module`): a [`~peft.PeftModel`]: its active adapter is written. Else a [`PreTrainedModel`]:
            the decoder is written where it alone is trainable, the whole model otherwise.
        processor ([`Processor`]): as training used it.
        folder (`Path`): is made where it does not exist.
        weights (`dict[str, torch.Tensor]`, *optional*): as in [`save_weights`].

    Raises:
        InputError: the folder cannot be written.
    """
    with _replace_files(folder) as staging:
        kind = save_weights(model, staging, weights)
        processor.save_pretrained(staging)
        if (folder / CARD).is_file() and not is_replaceable(folder / CARD):
            (staging / CARD).unlink(missing_ok=True)
        others = [name for other, names in WEIGHT_FILES.items() if other != kind for name in names]
        for stale in (*RESULT_FILES, *others):
            (folder / stale).unlink(missing_ok=True)


def save_results(folder: Path, results: dict[str, Any], pictures: dict[str, Image.Image]) -> None:
    """
    Writes `all_results.json` and pictures such as `samples.png`, beside their places and renamed.

    Args:
        folder (`Path`): exists.
        results (`dict[str, Any]`): what json takes.
        pictures (`dict[str, PIL.Image.Image]`): by name, without suffix; see [`contact_sheet`] and [`draw_curves`].

    Raises:
        InputError: the folder cannot be written.
    """
    with _replace_files(folder) as staging:
        for name, picture in pictures.items():
            picture.save(staging / f"{name}.png")
        (staging / "all_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replace_files(folder: Path) -> Iterator[Path]:
    staging = folder / ".writing"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        for file in sorted(staging.iterdir()):
            os.replace(file, folder / file.name)
        staging.rmdir()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be written (--output_dir): {error}; free space there") from error


def weights_to_save(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """
    What [`save_weights`] writes, by the model's own names; where the model is in parts, so are these.

    Args:
        model (`torch.nn.Module`): a base model, or a [`~peft.PeftModel`].

    Returns:
        `dict[str, torch.Tensor]`: an adapter with the modules saved along with it, the head alone where nothing else
        trains, or else the whole model.
    """
    state = model.state_dict()
    if isinstance(model, PeftModel):
        return {name: weight for name, weight in state.items() if model.active_adapter in name.split(".")}
    if not _trains_head_alone(model):
        return state
    return {name: state[name] for name, weight in model.named_parameters() if weight.requires_grad}


def _trains_head_alone(model: torch.nn.Module) -> bool:
    head = tuple(f"{part}." for part in family_of(model).head)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return bool(head) and all(name.startswith(head) for name in trained)


def save_weights(model: torch.nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> str:
    """
    Writes what was trained, without the processor and into its place at once.

    Args:
        model (`torch.nn.Module`): as in [`save_finetuned`].
        folder (`Path`): exists.
        weights (`dict[str, torch.Tensor]`, *optional*): [`weights_to_save`] made whole, where the model is in parts.

    Returns:
        `str`: which of `WEIGHT_FILES` it wrote.
    """
    weights = weights_to_save(model) if weights is None else weights
    if isinstance(model, PeftModel):
        name = cast(str, model.active_adapter)
        # Else peft asks the Hub whether the base model's embeddings changed.
        model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False, state_dict=weights)
        if name != "default":
            # peft puts an adapter of another name into a folder of its own.
            for file in sorted((folder / name).iterdir()):
                os.replace(file, folder / file.name)
            (folder / name).rmdir()
        return "adapter"
    assert isinstance(model, PreTrainedModel)
    if _trains_head_alone(model):
        save_file(weights, folder / "decoder.safetensors", metadata={"format": "pt"})
        settings = {"base_model_name_or_path": model.name_or_path, "trained": sorted(weights)}
        # transformers' pipeline asks for it before it asks us.
        model.config.save_pretrained(folder)
        (folder / "decoder_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return "decoder"
    model.save_pretrained(folder, max_shard_size="1TB", state_dict=weights)
    return "full"


def kind_of(folder: str | Path) -> str | None:
    """Which of `WEIGHT_FILES` an output folder holds, by its settings' file; None where it holds none."""
    return next((kind for kind, files in WEIGHT_FILES.items() if Path(folder, files[0]).is_file()), None)


def load_finetuned(
    path: str | Path, base: str | None = None, image_size: int | None = None
) -> tuple[torch.nn.Module, Processor]:
    """
    Loads what [`save_finetuned`] wrote, whichever of its kinds.

    Args:
        path (`str` or `Path`): the output folder of a fine-tuning run. An adapter may also be a name on the Hub.
        base (`str`, *optional*): the base model's folder or name. Default: the one that the folder names.
        image_size (`int`, *optional*): as in [`load_base`]. Default: the one of training.

    Returns:
        `tuple[torch.nn.Module, Processor]`: the model in eval mode, and the processor as training used it.

    Raises:
        InputError: the folder holds no fine-tuned model, or it or its base model cannot be loaded.
    """
    folder = Path(path)
    kind = kind_of(folder)
    if kind is None and folder.exists():
        names = ", ".join(files[0] for files in WEIGHT_FILES.values())
        raise InputError(f"{path} holds no fine-tuned model: none of {names} is there")
    if kind == "full":
        if not any(folder.glob("model*.safetensors")):
            raise InputError(f"{path} holds no fine-tuned model: model.safetensors is not there; copy it there")
        return _load_full(folder, image_size)
    try:
        if kind == "decoder":
            return _load_decoder(folder, base, image_size)
        with quiet_loading():
            return _load_adapter(str(path), base, image_size)
    except InputError:
        raise
    except _UNLOADABLE as error:
        raise InputError(f"the fine-tuned model {path} cannot be loaded: {error}") from error


def _load_full(folder: Path, image_size: int | None) -> tuple[torch.nn.Module, Processor]:
    model, processor = load_base(str(folder), image_size)
    check_finite(folder, model.state_dict())
    return model, processor


def _load_decoder(folder: Path, base: str | None, image_size: int | None) -> tuple[torch.nn.Module, Processor]:
    settings = json.loads((folder / "decoder_config.json").read_text(encoding="utf-8"))
    model, processor = _load_with_processor(str(folder), base or settings["base_model_name_or_path"], image_size)
    weights = load_weights(folder, "decoder.safetensors")
    head = tuple(f"{part}." for part in family_of(model).head)
    expected = {name for name in model.state_dict() if name.startswith(head)}
    trained = set(settings.get("trained", expected))
    if weights.keys() != trained or not trained <= expected:
        raise InputError(
            f"{folder / 'decoder.safetensors'} does not hold the decoder of the model {model.name_or_path}; copy it "
            "again, or give the model that it was trained on (--model_name_or_path)"
        )
    model.load_state_dict(weights, strict=False)
    return model.eval(), processor


def _load_with_processor(path: str, base: str, image_size: int | None) -> tuple[PreTrainedModel, Processor]:
    """The base model, built for the images of training, and the processor of training."""
    side = image_size or _trained_image_size(path)
    model, _ = load_base(base, side)
    return model, _load_processor(path, model)


def _trained_image_size(path: str) -> int | None:
    size = image_processor_settings(path).get("size")
    return size.get("height") if isinstance(size, dict) else None


def _load_adapter(path: str, base: str | None, image_size: int | None) -> tuple[torch.nn.Module, Processor]:
    config = read_adapter_config(path)
    weights = load_weights(path, WEIGHT_FILES["adapter"][1])
    base_model, processor = _load_with_processor(path, base or config.base_model_name_or_path or "", image_size)
    config.inference_mode = True
    config.base_model_name_or_path = base_model.name_or_path
    model = get_peft_model(cast(Any, base_model), config)
    fill_adapter(cast(PeftModel, model), path, weights)
    return model.eval(), processor
