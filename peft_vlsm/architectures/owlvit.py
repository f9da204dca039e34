"""OWL-ViT (`OwlViTForObjectDetection`): boxes for text queries. A sample's queries follow each other in the batch."""

from .clip import OPENAI_MEAN, OPENAI_STD, encoder_of
from .declaration import Architecture

BOXES = "the model gives boxes, and hands no hidden states to a decoder of masks"


def owl(name: str, model_class: str, image_size: int) -> Architecture:
    """The declaration of an OWL detector, whose CLIP model is the attribute `name`, also its `model_type`."""
    vision, text = f"{name}.vision_model", f"{name}.text_model"
    return Architecture(
        model_type=name,
        model_class=model_class,
        vision=encoder_of(f"{vision}.encoder.layers", "vision_config.hidden_size", f"{vision}.pre_layernorm"),
        text=encoder_of(f"{text}.encoder.layers", "text_config.hidden_size", f"{text}.embeddings", folded=True),
        conditional=f"{name}.text_projection",
        unreached=(f"{name}.visual_projection", f"{name}.logit_scale"),
        image_size=image_size,
        image_mean=OPENAI_MEAN,
        image_std=OPENAI_STD,
        reasons={"shallow V": BOXES, "shallow L": BOXES},
    )


OWLVIT = owl("owlvit", "OwlViTForObjectDetection", image_size=768)
