"""OWL-ViT (`OwlViTForObjectDetection`): boxes for text queries. A sample's queries follow each other in the batch."""

from .clip import OPENAI_MEAN, OPENAI_STD, encoder_of
from .declaration import Architecture

BOXES = "the model gives boxes, and hands no hidden states to a decoder of masks"

OWLVIT = Architecture(
    model_type="owlvit",
    model_class="OwlViTForObjectDetection",
    vision=encoder_of(
        "owlvit.vision_model.encoder.layers", "vision_config.hidden_size", "owlvit.vision_model.pre_layernorm"
    ),
    text=encoder_of(
        "owlvit.text_model.encoder.layers", "text_config.hidden_size", "owlvit.text_model.embeddings", folded=True
    ),
    conditional="owlvit.text_projection",
    unreached=("owlvit.visual_projection", "owlvit.logit_scale"),
    image_size=768,
    image_mean=OPENAI_MEAN,
    image_std=OPENAI_STD,
    reasons={"shallow V": BOXES, "shallow L": BOXES},
)
