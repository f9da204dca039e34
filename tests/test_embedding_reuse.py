"""Embeddings that are reused give what the plain forward gives, with adapters anywhere, and each is computed once."""

import copy
from collections import Counter

import pytest
import torch
from builders import move_trainable_weights
from models import CONFIGS, FAMILIES
from peft import LoraConfig, get_peft_model

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.segmenter import run_segmenter
from peft_vlsm.segmentation.prediction.embedding_reuse import EmbeddingReuse

CASES = [
    (family, tuner, family.variants[tuner][-1])
    for family in FAMILIES
    if family.name in ("clipseg", "sam3", "groupvit")
    for tuner in family.variants
]
IDS = [f"{family.name}-{tuner}-{variant}" for family, tuner, variant in CASES]
# Pairs of three images and three prompts, in two batches that share an image and a prompt.
BATCHES = (([0, 0, 1, 1], [0, 1, 1, 2]), ([1, 2, 2], [0, 2, 0]))
FIRST_LAYERS = {
    "clipseg": ("clip.vision_model.encoder.layers.0", "clip.text_model.encoder.layers.0"),
    "sam3": ("vision_encoder.backbone.embeddings", "text_encoder.text_model.encoder.layers.0"),
    "groupvit": ("vision_model.embeddings", "text_model.encoder.layers.0"),
}


def _adapted(family, tuner, variant):
    model = get_peft_model(family.build(), CONFIGS[tuner](variant=variant))
    move_trainable_weights(model)
    return model.eval()


def _batches(family, model):
    inputs = family.inputs(model, 3)
    for images, prompts in BATCHES:
        batch = {"pixel_values": inputs["pixel_values"][images]}
        yield {**batch, **{name: inputs[name][prompts] for name in ("input_ids", "attention_mask")}}, images, prompts


def _count_rows(model, family):
    """Counts the rows that reach the first layer of each encoder."""
    rows = Counter()
    host = model.get_base_model()
    for kind, path in zip(("images", "prompts"), FIRST_LAYERS[family.name], strict=True):
        host.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, kind=kind: rows.update({kind: len(inputs[0])})
        )
    return rows


@pytest.mark.parametrize("family, tuner, variant", CASES, ids=IDS)
def test_the_plain_forward_is_met_and_each_embedding_is_computed_once(family, tuner, variant):
    model = _adapted(family, tuner, variant)
    with torch.no_grad():
        expected = [run_segmenter(model, batch) for batch, _, _ in _batches(family, model)]
    rows = _count_rows(model, family)
    with EmbeddingReuse(model) as reuse:
        found = [reuse.run(*batch) for batch in _batches(family, model)]
    assert rows == {"images": 3, "prompts": 3}
    for plain, reused in zip(expected, found, strict=True):
        scale = max(1.0, plain.logits.abs().max().item())
        assert plain.logits.std() > 1e-2
        assert torch.allclose(reused.logits, plain.logits, atol=1e-5 * scale)
        if plain.presence is not None:
            assert torch.allclose(reused.presence, plain.presence, atol=1e-5)


def test_images_of_the_last_batch_alone_are_kept_and_all_prompts():
    """A scan has thousands of slices: what embeds them may not grow with each."""
    family, tuner, variant = CASES[0]
    model = _adapted(family, tuner, variant)
    inputs = family.inputs(model, 2)
    rows = _count_rows(model, family)
    with EmbeddingReuse(model) as reuse:
        for place in (0, 1, 0):
            batch = {name: inputs[name][[place]] for name in ("pixel_values", "input_ids", "attention_mask")}
            reuse.run(batch, [place], [place])
    assert rows == {"images": 3, "prompts": 2}


@pytest.mark.parametrize("family, tuner, variant", CASES, ids=IDS)
def test_nothing_is_left_behind(family, tuner, variant):
    model = _adapted(family, tuner, variant)
    batch = next(_batches(family, model))
    # transformers' own hooks come with the first forward.
    run_segmenter(model, batch[0])
    before = [set(module.__dict__) for module in model.modules()]
    with pytest.raises(IndexError), EmbeddingReuse(model) as reuse:
        reuse.run({**batch[0], "input_ids": batch[0]["input_ids"] + 1000}, *batch[1:])
    assert [set(module.__dict__) for module in model.modules()] == before
    # A copy runs its own methods, the original is as before.
    first, second = (run_segmenter(each, batch[0]).logits for each in (model, copy.deepcopy(model)))
    assert torch.equal(first, second)


def test_adapters_of_other_methods_too():
    family = FAMILIES[0]
    model = get_peft_model(family.build(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    move_trainable_weights(model)
    model.eval()
    batch = next(_batches(family, model))
    with torch.no_grad(), EmbeddingReuse(model) as reuse:
        found = reuse.run(*batch).logits
    assert torch.allclose(found, run_segmenter(model, batch[0]).logits, atol=1e-5)


def test_a_new_block_embeds_anew():
    """Between two blocks weights may have changed."""
    family, tuner, variant = CASES[0]
    model = _adapted(family, tuner, variant)
    batch = next(_batches(family, model))
    with EmbeddingReuse(model) as reuse:
        first = reuse.run(*batch).logits
    with model.disable_adapter(), EmbeddingReuse(model) as reuse:
        second = reuse.run(*batch).logits
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_model_without_masks_is_refused():
    with pytest.raises(InputError, match="a Linear gives no text-prompted masks"):
        EmbeddingReuse(torch.nn.Linear(2, 2))
