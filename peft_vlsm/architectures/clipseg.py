"""CLIPSeg (`CLIPSegForImageSegmentation`), the model of VLSM-Adapter (arXiv 2405.06196).

Its forward runs both encoders under `torch.no_grad`, so nothing inside them trains until that is lifted
([`enable_encoder_gradients`]). The decoder is handed the hidden states after the vision layers `extract_layers`; later
vision layers reach no text-prompted mask. All text layers do, through the pooled end-of-text token.
"""

from .declaration import Architecture, Encoder

CLIPSEG = Architecture(
    model_type="clipseg",
    model_class="CLIPSegForImageSegmentation",
    vision=Encoder(
        layers="clip.vision_model.encoder.layers",
        dense=("self_attn.out_proj", "mlp.fc2"),
        width="vision_config.hidden_size",
        after="clip.vision_model.post_layernorm",
        inputs="clip.vision_model.pre_layrnorm",
    ),
    text=Encoder(
        layers="clip.text_model.encoder.layers",
        dense=("self_attn.out_proj", "mlp.fc2"),
        width="text_config.hidden_size",
        after="clip.text_model.final_layer_norm",
        inputs="clip.text_model.embeddings",
    ),
    conditional="clip.text_projection",
    text_model="clip.text_model",
    text_features="clip.get_text_features",
    decoder="decoder",
    extract_layers="extract_layers",
    conditional_width="projection_dim",
    unreached=("clip.vision_model.post_layernorm", "clip.visual_projection", "clip.logit_scale"),
    outer_methods=("forward", "get_conditional_embeddings"),
    # transformers 4.57 calls `clip.vision_model` itself where 5.x calls `clip.get_image_features`.
    hidden_methods=("clip.get_image_features", "clip.get_text_features", "clip.vision_model.forward"),
    masks="logits",
    image_embedding="clip.vision_model.forward",
    text_embedding="clip.get_text_features",
    head=("decoder",),
    patch_size="vision_config.patch_size",
    image_size=352,
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
)
