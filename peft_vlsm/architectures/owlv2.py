"""OWLv2 (`Owlv2ForObjectDetection`): OWL-ViT's structure under another name, with a head for objectness."""

from .clip import OPENAI_MEAN, OPENAI_STD, encoder_of
from .declaration import Architecture
from .owlvit import BOXES

OWLV2 = Architecture(
    model_type="owlv2",
    model_class="Owlv2ForObjectDetection",
    vision=encoder_of(
        "owlv2.vision_model.encoder.layers", "vision_config.hidden_size", "owlv2.vision_model.pre_layernorm"
    ),
    text=encoder_of(
        "owlv2.text_model.encoder.layers", "text_config.hidden_size", "owlv2.text_model.embeddings", folded=True
    ),
    conditional="owlv2.text_projection",
    # The objectness head gets detached features, so no adapter learns from it.
    unreached=("owlv2.visual_projection", "owlv2.logit_scale"),
    image_size=960,
    image_mean=OPENAI_MEAN,
    image_std=OPENAI_STD,
    reasons={"shallow V": BOXES, "shallow L": BOXES},
)
