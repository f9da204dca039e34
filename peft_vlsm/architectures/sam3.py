"""SAM3 (`Sam3Model`), the text-prompted segmenter of 840M parameters.

Its vision encoder attends inside windows, which it folds into the batch, and in a few layers to the whole image; only
the state after the last layer is used, in a neck of convolutions. The conditional embedding is a sequence: each token
of the prompt, projected.
"""

from .declaration import Architecture, Encoder

SAM3 = Architecture(
    model_type="sam3",
    model_class="Sam3Model",
    vision=Encoder(
        layers="vision_encoder.backbone.layers",
        dense=("attention.o_proj", "mlp.fc2"),
        width="vision_config.backbone_config.hidden_size",
        inputs="vision_encoder.backbone.layer_norm",
        folded=True,
    ),
    text=Encoder(
        layers="text_encoder.text_model.encoder.layers",
        dense=("self_attn.out_proj", "mlp.fc2"),
        width="text_config.hidden_size",
        inputs="text_encoder.text_model.embeddings",
    ),
    conditional="text_projection",
    decoder="vision_encoder.neck",
    # The neck takes the state as an image: (batch, features, height, width).
    state_axis=1,
    unreached=("text_encoder.text_projection",),
    masks="semantic_seg",
    presence="presence_logits",
    image_embedding="vision_encoder.forward",
    text_embedding="text_encoder.forward",
    head=("mask_decoder",),
    patch_size="vision_config.backbone_config.patch_size",
    # The rotary embeddings of its global attention.
    fixed_image_size="vision_config.backbone_config.image_size",
    image_size=1008,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    reasons={
        "shallow L": "its conditional embedding is the sequence of all projected tokens, to which no pooled text "
        "state can be added",
        "train_decoder": "it calls its mask_decoder by keywords",
    },
)
