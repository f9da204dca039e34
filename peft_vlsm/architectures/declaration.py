"""What a family of models declares: where its encoders, its conditional embedding and its decoder are.

The tuners read these declarations and nothing else of a family: a new family is a new declaration, never a new branch.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Encoder:
    """
    One transformer encoder of a model. All paths are dotted names from the model's root.

    Args:
        layers (`str`): path of the `nn.ModuleList` of encoder layers.
        dense (`tuple[str, ...]`):
            modules inside one layer whose output, before the residual addition, a Dense adapter adapts: the last
            operation of self-attention first, then that of the MLP.
        width (`str`): path in the model's config of the hidden size.
        after (`str`): path of the module that reads the last layer's hidden state.
    """

    layers: str
    dense: tuple[str, ...]
    width: str
    after: str


@dataclass(frozen=True)
class Architecture:
    """
    Where adapters go in one family of vision-language segmentation models.

    Args:
        model_type (`str`): `config.model_type` of the family.
        model_class (`str`): name of the class that these paths start from.
        vision, text (`Encoder`): the two encoders.
        conditional (`str`): path of the module whose output is the conditional embedding of a text prompt.
        text_model (`str`): path of the text model; its `eos_token_id` says which token is pooled.
        text_features (`str`): path of the method that runs the text model and then `conditional`.
        decoder (`str`): path of the module whose first argument is the list of hidden states.
        extract_layers (`str`): path in the config of the vision layers whose hidden states the decoder is handed.
        conditional_width (`str`): path in the config of the conditional embedding's size.
        unreached (`tuple[str, ...]`): modules and parameters on which no text-prompted mask depends.
        outer_methods (`tuple[str, ...]`): methods that a user calls and that hide the encoders under `torch.no_grad`.
        hidden_methods (`tuple[str, ...]`): the methods that run hidden in there.
    """

    model_type: str
    model_class: str
    vision: Encoder
    text: Encoder
    conditional: str
    text_model: str
    text_features: str
    decoder: str
    extract_layers: str
    conditional_width: str
    unreached: tuple[str, ...] = ()
    outer_methods: tuple[str, ...] = ()
    hidden_methods: tuple[str, ...] = ()

    def is_host(self, module: nn.Module) -> bool:
        """Whether `module` is the model that this declaration's paths start from (or a subclass of it)."""
        return any(parent.__name__ == self.model_class for parent in type(module).__mro__)


def config_value(config: Any, path: str) -> Any:
    """Reads a dotted path from a model's config, for example `vision_config.hidden_size`."""
    for name in path.split("."):
        config = getattr(config, name)
    return config
