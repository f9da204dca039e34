"""CLIP (`CLIPModel`): image-text matching and classification; no masks, so no decoder for Shallow adapters."""

from .declaration import Architecture, Encoder

NO_DECODER = "the model hands no hidden states to a decoder"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def encoder_of(layers: str, width: str, inputs: str, *, folded: bool = False) -> Encoder:
    """An encoder with CLIP's layers, whose residual branches end in `self_attn.out_proj` and `mlp.fc2`."""
    return Encoder(layers=layers, dense=("self_attn.out_proj", "mlp.fc2"), width=width, inputs=inputs, folded=folded)


CLIP = Architecture(
    model_type="clip",
    model_class="CLIPModel",
    vision=encoder_of("vision_model.encoder.layers", "vision_config.hidden_size", "vision_model.pre_layrnorm"),
    text=encoder_of("text_model.encoder.layers", "text_config.hidden_size", "text_model.embeddings"),
    conditional="text_projection",
    image_size=224,
    image_mean=OPENAI_MEAN,
    image_std=OPENAI_STD,
    reasons={"shallow V": NO_DECODER, "shallow L": NO_DECODER},
)
