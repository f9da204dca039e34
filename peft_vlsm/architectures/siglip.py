"""SigLIP (`SiglipModel`): image-text matching by a sigmoid loss. Its text model ends in a head of its own, and there
is no projection to a joint space after it."""

from .clip import NO_DECODER, encoder_of
from .declaration import Architecture

SIGLIP = Architecture(
    model_type="siglip",
    model_class="SiglipModel",
    vision=encoder_of("vision_model.encoder.layers", "vision_config.hidden_size", "vision_model.embeddings"),
    text=encoder_of("text_model.encoder.layers", "text_config.hidden_size", "text_model.embeddings"),
    image_size=224,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    reasons={
        "C": "there is no text projection: the text model's pooled output is the embedding itself",
        "shallow V": NO_DECODER,
        "shallow L": NO_DECODER,
    },
)
