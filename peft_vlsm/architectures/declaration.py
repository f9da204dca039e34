"""What a family of models declares: where its encoders, its conditional embedding and its decoder are.

The tuners read these declarations and nothing else of a family: a new family is a new declaration, never a new branch.
A declaration is made of names and numbers alone, so that a user's own is saved with the adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Encoder:
    """
    One transformer encoder of a model. All paths are dotted names from the model's root.

    Args:
        layers (`str`):
            path of the `nn.ModuleList` or `nn.Sequential` of encoder layers; `*` in it stands for every index, for
            encoders made of stages: `vision_model.encoder.stages.*.layers`.
        dense (`tuple[str, ...]`):
            modules inside one layer whose output, before the residual addition, a Dense adapter adapts: the last
            operation of self-attention first, then that of the MLP.
        width (`str` or `int`, *optional*): the hidden size, or its path in the model's config; Shallow needs it.
        after (`str`, *optional*): path of the module that reads the last layer's hidden state; Shallow's L needs it.
        inputs (`str`, *optional*): path of the module whose output enters the first layer, for gradient checkpointing.
        batch_axis (`int`, defaults to 0): the axis of the batch in the layers' hidden states.
        folded (`bool`, defaults to `False`): whether parts of a sample, such as windows, follow each other in it.
    """

    layers: str
    dense: tuple[str, ...]
    width: str | int | None = None
    after: str | None = None
    inputs: str | None = None
    batch_axis: int = 0
    folded: bool = False


@dataclass(frozen=True)
class Architecture:
    """
    Where adapters go in one family of vision-language models, and how its text-prompted masks are read.

    Args:
        model_type (`str`): `config.model_type` of the family.
        model_class (`str`, *optional*):
            name of the class that these paths start from. None fits every model whose config has `model_type`.
        vision, text (`Encoder`, *optional*): the two encoders.
        conditional (`str`, *optional*): path of the module whose output is the conditional embedding of a text prompt.
        decoder (`str`, *optional*): path of the module whose first argument is the hidden state, or the list of them,
            that the vision encoder hands on.
        extract_layers (`str` or `tuple[int, ...]`, *optional*):
            the vision layers whose hidden states the decoder is handed, or their path in the config. None: the state
            after the last layer, not in a list.
        state_axis (`int`, defaults to -1): the axis of the features in those states.
        text_model (`str`, *optional*): path of the text model; its `eos_token_id` says which token is pooled.
        text_features (`str`, *optional*): path of the method that runs the text model and then `conditional`.
        conditional_width (`str` or `int`, *optional*): the conditional embedding's size, or its path in the config.
        unreached (`tuple[str, ...]`): modules and parameters on which no text-prompted mask depends.
        outer_methods (`tuple[str, ...]`): methods that a user calls and that hide the encoders under `torch.no_grad`.
        hidden_methods (`tuple[str, ...]`): the methods that run hidden in there.
        masks (`str`, *optional*): name, in the model's output, of the text-prompted mask logits.
        presence (`str`, *optional*): name, in the output, of the logit of whether the image has what the prompt names.
        flags (`tuple[str, ...]`): arguments that the model is called with as True to give masks.
        image_embedding, text_embedding (`str`, *optional*):
            paths of the methods that the model calls to embed the images and the prompts of a batch, row by row: what
            they give for a row serves other prompts of the same image, and other images with the same prompt.
        head (`tuple[str, ...]`): the modules that make masks out of what the encoders give.
        patch_size (`str`, *optional*): path in the config of the patches' side in pixels.
        fixed_image_size (`str`, *optional*):
            path in the config of the image size that the model is built for. None: it takes every size.
        image_size (`int`, *optional*): side in pixels of the square images that the family's checkpoints take.
        image_mean, image_std (`tuple[float, float, float]`, *optional*): their normalisation, of values from 0 to 1.
        reasons (`Mapping[str, str]`):
            why a place does not exist, for error messages: under `V`, `L` and `C`, or `shallow V` and so on; under
            `train_decoder` why peft before 0.20 cannot run a head that is saved along with an adapter.
    """

    model_type: str
    model_class: str | None = None
    vision: Encoder | None = None
    text: Encoder | None = None
    conditional: str | None = None
    decoder: str | None = None
    extract_layers: str | tuple[int, ...] | None = None
    state_axis: int = -1
    text_model: str | None = None
    text_features: str | None = None
    conditional_width: str | int | None = None
    unreached: tuple[str, ...] = ()
    outer_methods: tuple[str, ...] = ()
    hidden_methods: tuple[str, ...] = ()
    masks: str | None = None
    presence: str | None = None
    flags: tuple[str, ...] = ()
    image_embedding: str | None = None
    text_embedding: str | None = None
    head: tuple[str, ...] = ()
    patch_size: str | None = None
    fixed_image_size: str | None = None
    image_size: int | None = None
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def is_host(self, module: nn.Module) -> bool:
        """Whether `module` is the model that this declaration's paths start from (or a subclass of it)."""
        if self.model_class is not None:
            return any(parent.__name__ == self.model_class for parent in type(module).__mro__)
        return getattr(getattr(module, "config", None), "model_type", None) == self.model_type

    def encoder_of(self, letter: str) -> Encoder | None:
        """The encoder whose states V, or L and C, adapt."""
        return self.vision if letter == "V" else self.text

    @property
    def name(self) -> str:
        """How error messages call the family."""
        return self.model_class or self.model_type

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Architecture":
        """
        A declaration from what JSON made of it.

        Args:
            content (`Mapping[str, Any]`): as `dataclasses.asdict` gives it; lists stand for tuples.

        Raises:
            `ValueError`: for a field that there is not, or one that is missing.
        """
        values = _checked(cls, content, "architecture")
        for name in ("vision", "text"):
            if isinstance(values.get(name), Mapping):
                values[name] = Encoder(**_checked(Encoder, values[name], f"architecture.{name}"))
        return cls(**values)


def _checked(cls: type, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    allowed = [entry.name for entry in fields(cls)]
    unknown = sorted(set(content) - set(allowed))
    if unknown:
        raise ValueError(f"{where} has the field {unknown[0]!r}; allowed: {', '.join(allowed)}.")
    needed = {Architecture: ("model_type",), Encoder: ("layers", "dense")}[cls]
    missing = [name for name in needed if name not in content]
    if missing:
        raise ValueError(f"{where} lacks the field {missing[0]!r}; allowed: with {', '.join(needed)}.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def config_value(config: Any, path: str | int) -> Any:
    """Reads a dotted path from a model's config, for example `vision_config.hidden_size`; a number is itself."""
    if isinstance(path, int):
        return path
    for name in path.split("."):
        config = getattr(config, name)
    return config
