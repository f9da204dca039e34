"""The Dense tuner: bottlenecks on the output of self-attention and of the MLP of each encoder layer."""

from typing import Any

from torch import nn

from ..architectures.declaration import Architecture
from ..architectures.placement import Placement, dense_placement
from .layer import AdapterLayer, DenseLayer
from .model import VLSMAdapterModel
from .widths import width_of


class DenseAdapterModel(VLSMAdapterModel):
    """
    Puts Dense adapters into a model: bottlenecks on the output of self-attention and of the MLP of each encoder layer
    (VLSM-Adapter, arXiv 2405.06196, section 3). Made by `get_peft_model(model, DenseAdapterConfig(...))`.
    """

    prefix = DenseLayer.prefix
    tuner_layer_cls = DenseLayer

    def _placement(self, family: Architecture, model: nn.Module, config: Any) -> Placement:
        return dense_placement(family, model, config.variant, config.layers)

    def _layer_class(self, places: list[tuple[str, str]]) -> type[AdapterLayer]:
        return DenseLayer

    def _fill(self, layer: AdapterLayer, adapter_name: str, config: Any, letter: str, place: str) -> None:
        width = width_of(layer.base_layer, "output")
        layer.add_slot("", width)
        layer.update_layer(adapter_name, "", config.width_at(place, width, conditional=letter == "C"), config)
