"""The peft side: two tuner types, Dense and Shallow adapters, registered on import."""

from .checkpoints import load_vlsm_adapter_checkpoint
from .config import DenseAdapterConfig, ShallowAdapterConfig
from .dense import DenseAdapterModel
from .registration import DENSE_NAME, SHALLOW_NAME, register
from .shallow import ShallowAdapterModel

__all__ = [
    "DenseAdapterConfig",
    "DenseAdapterModel",
    "ShallowAdapterConfig",
    "ShallowAdapterModel",
    "load_vlsm_adapter_checkpoint",
]

register(DENSE_NAME, DenseAdapterConfig, DenseAdapterModel)
register(SHALLOW_NAME, ShallowAdapterConfig, ShallowAdapterModel)
