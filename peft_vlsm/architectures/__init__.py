"""The model side: where adapters go in each family, and how gradients get there."""

from .declaration import Architecture, Encoder
from .families import FAMILIES, architecture_of, register_architecture
from .gradients import EncoderGradients, enable_encoder_gradients
from .masks import mask_logits_of
from .reach import unreached_parameters

__all__ = [
    "FAMILIES",
    "Architecture",
    "Encoder",
    "EncoderGradients",
    "architecture_of",
    "enable_encoder_gradients",
    "mask_logits_of",
    "register_architecture",
    "unreached_parameters",
]
