"""What trains in a base model: our adapters, LoRA, IA3, the head that makes the masks, or all of it."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import peft
import torch
from packaging.version import Version
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig, enable_encoder_gradients
from peft_vlsm.architectures import Architecture, unreached_parameters
from peft_vlsm.architectures.reach import layer_names
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import quiet_loading
from peft_vlsm.segmentation.models.segmenter import base_of, family_of
from peft_vlsm.tuners.config import VLSMAdapterConfig

OURS = ("dense", "shallow")
# peft's own, with the names of the linear layers that they adapt in self-attention and MLP.
PEFTS = {"lora": ("q_proj", "v_proj"), "ia3": ("k_proj", "v_proj", "fc2")}
ADAPTERS = (*OURS, *PEFTS)
METHODS = (*ADAPTERS, "decoder", "full")
LORA_RANK = 16
# Since then peft passes keywords on to a module that is saved along with an adapter.
KEYWORDS = Version("0.20")


@dataclass(frozen=True)
class Method:
    """
    What trains.

    Args:
        name (`str`): one of `METHODS`.
        variant (`str`, *optional*): where adapters stand; None means `"VL"`.
        adapter_dim (`int`, *optional*): their width; None means the method's own.
        init_weights (`bool` or `str`): how our adapters start.
        train_decoder (`bool`): whether the head that makes the masks trains along with adapters.
    """

    name: str
    variant: str | None = None
    adapter_dim: int | None = None
    init_weights: bool | str = "paper"
    train_decoder: bool = False


def resolve(method: Method) -> Method:
    """
    Fills in the variant and the width that a method has where none was given.

    Raises:
        InputError: a setting has a value that is not allowed.
    """
    if method.name in OURS:
        config = _checked(method, lambda: _our_config(method, None))
        return replace(method, variant=config.variant, adapter_dim=config.adapter_dim)
    if method.name in PEFTS:
        width = (method.adapter_dim or LORA_RANK) if method.name == "lora" else None
        return replace(method, variant=method.variant or "VL", adapter_dim=width)
    return method


def make_trainable(model: PreTrainedModel, method: Method) -> PreTrainedModel | PeftModel:
    """
    Leaves `requires_grad` at exactly what the method trains, and turns the model's own dropout off.

    Args:
        model ([`~transformers.PreTrainedModel`]): of a family with masks; changed in place.
        method ([`Method`]): what trains, as [`resolve`] gives it.

    Returns:
        `PreTrainedModel | PeftModel`: the model, adapted where the method has adapters.

    Raises:
        InputError: the family has no such places, or a setting has a value that is not allowed.
    """
    family = family_of(model)
    # SAM3 drops features of whole batches at random: other shares of a step would train something else.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # CLIPSeg runs its encoders under no_grad: without enable_encoder_gradients nothing in them would train.
    if method.name in ("full", *PEFTS):
        enable_encoder_gradients(model)
    if method.name == "full":
        unreached = unreached_parameters(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in unreached)
        return model
    model.requires_grad_(False)
    if (method.name == "decoder" or method.train_decoder) and not family.head:
        raise InputError(f"a {family.name} has no head of its own that could train; use adapters alone, or full")
    if method.train_decoder and "train_decoder" in family.reasons and Version(peft.__version__) < KEYWORDS:
        reason = family.reasons["train_decoder"]
        raise InputError(
            f"--train_decoder True: peft {peft.__version__} cannot train the head of a {family.name}, since {reason}; "
            "pip install -U peft"
        )
    if method.name == "decoder":
        for part in family.head:
            model.get_submodule(part).requires_grad_(True)
        return model
    return _checked(method, lambda: _adapt(model, family, method))


def checkpoint_gradients(model: torch.nn.Module) -> None:
    """
    Has the encoders' layers compute their activations again in the backward pass instead of keeping them.

    Args:
        model (`torch.nn.Module`): as [`make_trainable`] left it.

    Raises:
        InputError: transformers has no gradient checkpointing for the family.
    """
    base = base_of(model)
    if not base.supports_gradient_checkpointing:
        raise InputError(
            f"--gradient_checkpointing True: transformers has none for a {family_of(model).name}; lower "
            "--per_device_train_batch_size or --image_size instead"
        )
    with warnings.catch_warnings():
        # transformers 5 has another name for it, which 4.57 lacks.
        warnings.simplefilter("ignore", FutureWarning)
        base.gradient_checkpointing_enable({"use_reentrant": False})


def _checked(method: Method, make: Callable[[], Any]) -> Any:
    try:
        with quiet_loading():
            return make()
    except ValueError as error:
        raise InputError(f"--method {method.name}: {error}") from error


def _adapt(model: PreTrainedModel, family: Architecture, method: Method) -> Any:
    head = list(family.head) if method.train_decoder else None
    if method.name in OURS:
        return get_peft_model(cast(Any, model), _our_config(method, head))
    targets = _linear_layers(model, family, method.variant or "VL", PEFTS[method.name])
    if method.name == "ia3":
        feedforward = [name for name in targets if name.endswith("fc2")]
        config = IA3Config(target_modules=targets, feedforward_modules=feedforward, modules_to_save=head)
    else:
        rank = method.adapter_dim or LORA_RANK
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, modules_to_save=head)
    return get_peft_model(cast(Any, model), config)


def _our_config(method: Method, head: list[str] | None) -> VLSMAdapterConfig:
    config_class = DenseAdapterConfig if method.name == "dense" else ShallowAdapterConfig
    settings: dict[str, Any] = {} if method.adapter_dim is None else {"adapter_dim": method.adapter_dim}
    return config_class(
        variant=method.variant, init_weights=cast(Any, method.init_weights), modules_to_save=head, **settings
    )


def _linear_layers(model: PreTrainedModel, family: Architecture, variant: str, names: tuple[str, ...]) -> list[str]:
    """The layers of these names in the encoders that a variant names, as far as they reach a mask."""
    if variant not in ("V", "L", "VL", "LV"):
        raise ValueError(f"variant is {variant!r}; allowed for peft's own methods: V, L or VL.")
    unreached = unreached_parameters(model)
    layers: list[str] = []
    for letter in variant:
        encoder = family.encoder_of(letter)
        assert encoder is not None
        layers += layer_names(encoder, model)
    wanted = re.compile(rf"(?:{'|'.join(map(re.escape, layers))})\.[\w.]+\.(?:{'|'.join(names)})")
    return [name for name, _ in model.named_modules() if wanted.fullmatch(name) and f"{name}.weight" not in unreached]


def freeze_what_the_loss_misses(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> list[str]:
    """
    Freezes the trainable weights of the base model that the loss does not reach, such as SAM3's boxes.

    DistributedDataParallel fails on weights that get no gradient.

    Args:
        model (`torch.nn.Module`): as [`make_trainable`] left it.
        loss (`Callable[[], torch.Tensor]`): computes the loss of any batch with this model.

    Returns:
        `list[str]`: the names of the weights that were frozen.

    Raises:
        InputError: an adapter gets no gradient, so that it would train nothing, or nothing is left to train.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss(), list(trainable.values()), allow_unused=True)
    missed = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    dead = [name for name in missed if re.search(r"vlsm_(dense|shallow)_adapter_|lora_[AB]\.|ia3_l\.", name)]
    if dead or len(missed) == len(trainable):
        raise InputError(f"{len(dead or missed)} weights would train nothing, such as {(dead or missed)[0]}")
    for name in missed:
        trainable[name].requires_grad_(False)
    return missed
