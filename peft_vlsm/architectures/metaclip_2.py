"""MetaCLIP 2 (`MetaClip2Model`): CLIP's structure, trained on text of many languages."""

from dataclasses import replace

from .clip import CLIP

METACLIP_2 = replace(CLIP, model_type="metaclip_2", model_class="MetaClip2Model")
