"""GroupViT (`GroupViTModel`): segments by grouping image tokens in stages; each group is compared with the prompts.

The masks come with `output_segmentation=True`, one for each prompt of the batch. Which token belongs to which group is
computed under `torch.no_grad`; gradients reach the encoders through the groups' similarity to the prompts.
"""

from .clip import OPENAI_MEAN, OPENAI_STD, encoder_of
from .declaration import Architecture

GROUPED = "the model groups its tokens and hands no hidden states to a decoder"

GROUPVIT = Architecture(
    model_type="groupvit",
    model_class="GroupViTModel",
    vision=encoder_of(
        "vision_model.encoder.stages.*.layers", "vision_config.hidden_size", "vision_model.embeddings.layernorm"
    ),
    text=encoder_of("text_model.encoder.layers", "text_config.hidden_size", "text_model.embeddings"),
    conditional="text_projection",
    masks="segmentation_logits",
    flags=("output_segmentation",),
    image_embedding="vision_model.forward",
    text_embedding="text_model.forward",
    patch_size="vision_config.patch_size",
    image_size=224,
    image_mean=OPENAI_MEAN,
    image_std=OPENAI_STD,
    reasons={"shallow V": GROUPED, "shallow L": GROUPED},
)
