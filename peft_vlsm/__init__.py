"""Adapters for vision-language segmentation models (VLSM-Adapter, arXiv 2405.06196) as a plug-in of Hugging Face peft.

Importing this package registers the two tuner types with peft, and the task text-prompted-segmentation with the
pipelines of transformers.
"""

from .architectures import Architecture, Encoder, enable_encoder_gradients, register_architecture
from .segmentation.prediction.pipeline import text_prompted_segmentation
from .tuners import DenseAdapterConfig, ShallowAdapterConfig, load_vlsm_adapter_checkpoint
from .version import __version__

__all__ = [
    "Architecture",
    "DenseAdapterConfig",
    "Encoder",
    "ShallowAdapterConfig",
    "__version__",
    "enable_encoder_gradients",
    "load_vlsm_adapter_checkpoint",
    "register_architecture",
    "text_prompted_segmentation",
]
