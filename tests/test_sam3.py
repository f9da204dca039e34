"""SAM3: windowed and global layers, the conditional sequence, precomputed embeddings, a training step."""

import pytest
import torch
from models import CONFIGS, prompt_inputs, tiny_sam3
from peft import get_peft_model
from torch.nn import functional as F

from peft_vlsm.architectures import unreached_parameters

DENSE_MODULES = ("attention.o_proj", "mlp.fc2")


def adapt(tuner, variant, **fields):
    return get_peft_model(tiny_sam3(), CONFIGS[tuner](variant=variant, adapter_dim=4, init_weights=False, **fields))


def test_where_dense_adapters_stand():
    model = adapt("dense", "VLC")
    places = model.peft_config["default"].resolved_modules
    vision = [f"vision_encoder.backbone.layers.{i}.{part}" for i in range(3) for part in DENSE_MODULES]
    assert places["V"] == vision and places["C"] == ["text_projection"]
    assert len(places["L"]) == 6 and all("text_encoder.text_model.encoder.layers." in name for name in places["L"])


def test_where_shallow_adapters_stand():
    places = adapt("shallow", "VC").peft_config["default"].resolved_modules
    assert places == {"V": ["vision_encoder.neck@vision_encoder.backbone.layers.2"], "C": ["text_projection"]}


@pytest.mark.parametrize("variant", ["L", "VL", "VLC", None])
def test_shallow_l_is_refused(variant):
    with pytest.raises(
        ValueError, match="variant has 'L'.*Sam3Model: its conditional embedding is the sequence.*allowed: V, C"
    ):
        adapt("shallow", variant)


@pytest.mark.parametrize(("tuner", "variant"), [("dense", "VLC"), ("dense", "V"), ("dense", "C"), ("shallow", "VC")])
def test_precomputed_embeddings_give_the_same_output(tuner, variant):
    model = adapt(tuner, variant).eval()
    inputs = prompt_inputs(model)
    with torch.no_grad():
        expected = model(**inputs)
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        vision = model.get_vision_features(pixel_values=inputs["pixel_values"])
        text = model.get_text_features(**prompt)
        found = model(vision_embeds=vision, text_embeds=text, attention_mask=inputs["attention_mask"])
        with model.disable_adapter():
            base = model(**inputs)
    for name in ("semantic_seg", "presence_logits", "pred_masks"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0)
        assert not torch.allclose(base[name], expected[name], atol=1e-4)


def test_the_conditional_adapts_every_token():
    model = adapt("dense", "C").eval()
    layer = model.get_base_model().text_projection
    states = torch.randn(2, 5, 24)
    with torch.no_grad():
        embedding = layer.base_layer(states)
        torch.testing.assert_close(layer(states), embedding + layer.change(embedding, "default"))


def test_shallow_adapts_the_features_of_the_neck():
    model = adapt("shallow", "V").eval()
    neck = model.get_base_model().vision_encoder.neck
    state = torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        changed = state + neck.change(state.movedim(1, -1), "default", "vision_2").movedim(-1, 1)
        expected = neck.base_layer(changed)[0][0]
        torch.testing.assert_close(neck(state)[0][0], expected)


@pytest.mark.parametrize(("tuner", "variant"), [("dense", "VLC"), ("shallow", "VC")])
def test_training_lowers_the_loss_of_masks_and_presence(tuner, variant):
    model = get_peft_model(tiny_sam3(), CONFIGS[tuner](variant=variant, adapter_dim=8))
    inputs = prompt_inputs(model)
    # The second image lacks what its prompt names.
    present = torch.tensor([[1.0], [0.0]])
    masks = torch.zeros_like(model(**inputs).semantic_seg)
    masks[0, 0, :8, :8] = 1.0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(30):
        output = model(**inputs)
        loss = F.binary_cross_entropy_with_logits(output.semantic_seg, masks)
        loss = loss + F.binary_cross_entropy_with_logits(output.presence_logits, present)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_encoders_are_reached_to_their_last_layer():
    unreached = unreached_parameters(tiny_sam3())
    assert unreached == {"text_encoder.text_projection.weight"}
