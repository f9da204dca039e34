"""SigLIP 2 (`Siglip2Model`): SigLIP's structure with images of any aspect, given as patches (the NaFlex variants)."""

from dataclasses import replace

from .siglip import SIGLIP

SIGLIP2 = replace(SIGLIP, model_type="siglip2", model_class="Siglip2Model", image_size=None)
