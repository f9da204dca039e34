"""What a user does with an adapted CLIPSeg: embeddings, visual prompts, hidden states, the decoder, checkpoints."""

import json

import pytest
import torch
from models import ADAPTED, ADAPTED_IDS, CONFIGS, FAMILIES, VARIANTS, clipseg_inputs, tiny_clipseg
from peft import AutoPeftModel, PeftConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import nn

import peft_vlsm.architectures
from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig

tuners = pytest.mark.parametrize("tuner", CONFIGS)
adapted = pytest.mark.parametrize(("tuner", "variant"), [row[1:] for row in ADAPTED], ids=ADAPTED_IDS)


def adapt(tuner, variant="VLC", model=None, **fields):
    fields = {"adapter_dim": 6, "init_weights": False, **fields}
    return get_peft_model(tiny_clipseg() if model is None else model, CONFIGS[tuner](variant=variant, **fields))


def prompt_of(inputs):
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def trained(model, steps=3, lr=3e-2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        model(**clipseg_inputs(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@adapted
def test_prompts_can_be_embedded_once_and_reused(tuner, variant):
    model = adapt(tuner, variant)
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        embedding = model.get_conditional_embeddings(batch_size=2, **prompt_of(inputs))
        assert embedding.shape == (2, 24)
        with model.disable_adapter():
            unadapted = model.get_conditional_embeddings(batch_size=2, **prompt_of(inputs))
        assert torch.equal(embedding, unadapted) == (variant == "V")
        reused = model(pixel_values=inputs["pixel_values"], conditional_embeddings=embedding)
        prompted = model(**inputs)
    torch.testing.assert_close(reused.logits, prompted.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(prompted.conditional_embeddings, embedding, atol=1e-6, rtol=0)


@adapted
def test_visual_prompts(tuner, variant):
    model = adapt(tuner, variant)
    inputs = clipseg_inputs(model)
    image = inputs["pixel_values"]
    output = model(pixel_values=image, conditional_pixel_values=image.flip(0), labels=inputs["labels"])
    assert output.loss.requires_grad == ("V" in variant)
    if "V" in variant:
        output.loss.backward()
    with torch.no_grad(), model.disable_adapter():
        unadapted = model.get_conditional_embeddings(batch_size=2, conditional_pixel_values=image.flip(0))
    dense_vision = tuner == "dense" and "V" in variant
    assert torch.equal(output.conditional_embeddings, unadapted) != dense_vision
    reached = {name for name, p in model.named_parameters() if "vlsm_" in name and p.grad is not None and p.grad.any()}
    assert bool(reached) == ("V" in variant)
    assert not any("text" in name for name in reached)


@adapted
def test_hidden_states_and_attentions(tuner, variant):
    model = adapt(tuner, variant, model=tiny_clipseg(attention="eager"))
    inputs = clipseg_inputs(model)
    layers = model.get_base_model().clip.vision_model.encoder.layers
    seen = []
    hooks = [layer.register_forward_hook(lambda _m, _a, output: seen.append(output)) for layer in layers]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        for hook in hooks:
            hook.remove()
        plain = model(**inputs)
        with model.disable_adapter():
            base = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(output.logits, plain.logits, atol=0, rtol=0)
    vision = output.vision_model_output
    assert (
        len(vision.hidden_states) == 7 and len(vision.attentions) == 6 and len(output.decoder_output.attentions) == 2
    )
    for state, expected in zip(vision.hidden_states[1:], seen, strict=True):
        assert torch.equal(state, expected[0] if isinstance(expected, tuple) else expected)
    for attention in vision.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 17))
    same = torch.equal(vision.hidden_states[-1], base.vision_model_output.hidden_states[-1])
    assert same == (tuner == "shallow" or "V" not in variant)


def test_tapped_states_are_released():
    model = adapt("shallow")
    inputs = clipseg_inputs(model)
    model(**inputs)
    with pytest.raises((ValueError, RuntimeError)):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})

    def fails(_module, _args):
        raise RuntimeError("a failing layer")

    hook = model.get_base_model().clip.text_model.encoder.layers[4].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="a failing layer"):
        model.get_conditional_embeddings(batch_size=2, **prompt_of(inputs))
    hook.remove()
    projection = model.get_base_model().clip.text_projection
    assert projection.text_states.states == {} and projection.text_states.positions is None
    with pytest.raises(RuntimeError, match="no text state after layer 1.*clip.get_text_features"):
        projection(torch.zeros(2, 24))


@tuners
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_the_decoder_too(tuner, variant, tmp_path):
    base = tiny_clipseg()
    decoder = {name: value.clone() for name, value in base.decoder.state_dict().items()}
    model = adapt(tuner, variant, model=base, modules_to_save=["decoder"], init_weights=True)
    inputs = clipseg_inputs(model)
    model(**inputs).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(".modules_to_save." in name for name in with_gradient) == len(decoder)
    trained(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(**inputs).logits, tiny_clipseg()(**inputs).logits, atol=0, rtol=0)
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
            saved = list(file.keys())
        assert sum("vlsm_" not in key for key in saved) == len(decoder)
        loaded = PeftModel.from_pretrained(tiny_clipseg(), tmp_path)
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=0, rtol=0)
    unloaded = model.unload()
    assert list(unloaded.decoder.state_dict()) == list(decoder)
    assert not any(isinstance(module, ModulesToSaveWrapper) for module in unloaded.modules())


def test_a_decoder_saved_without_v_meets_an_adapter_with_v(tmp_path):
    first = trained(adapt("shallow", "C", modules_to_save=["decoder"]))
    inputs = clipseg_inputs(first)
    first.save_pretrained(tmp_path)
    both = adapt("shallow", "V")
    both.load_adapter(tmp_path, "first")
    both.set_adapter("first")
    with torch.no_grad():
        torch.testing.assert_close(both(**inputs).logits, first(**inputs).logits, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@tuners
def test_a_half_precision_base_with_a_trained_decoder(tuner, dtype):
    model = adapt(tuner, model=tiny_clipseg().to(dtype), modules_to_save=["decoder"])
    inputs = clipseg_inputs(model)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
    assert {p.dtype for name, p in model.named_parameters() if "vlsm_" in name} == {torch.float32}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("tuner", "modules_to_save", "message"),
    [
        ("dense", ["clip"], "modules_to_save has 'clip', which contains 'clip.vision_model"),
        ("dense", ["text_projection"], "modules_to_save has 'text_projection', which contains 'clip.text_projection'"),
        ("shallow", ["clip.text_projection"], "which contains 'clip.text_projection' where an adapter stands"),
        (
            "shallow",
            ["decoder.reduce"],
            "modules_to_save has 'decoder.reduce', which CLIPSegForImageSegmentation does",
        ),
        ("shallow", ["decoder.film_mul"], "modules_to_save has 'decoder.film_mul', .*allowed: 'decoder' as a whole"),
        ("dense", ["head"], "modules_to_save has 'head', which CLIPSegForImageSegmentation does not have"),
    ],
)
def test_modules_to_save_that_cannot_be(tuner, modules_to_save, message):
    base = tiny_clipseg()
    before = list(base.state_dict())
    with pytest.raises(ValueError, match=message):
        adapt(tuner, model=base, modules_to_save=modules_to_save)
    assert list(base.state_dict()) == before and "forward" not in base.__dict__


@tuners
def test_a_part_of_the_decoder_can_be_saved_too(tuner, tmp_path):
    model = trained(adapt(tuner, modules_to_save=["decoder.layers.1", "reduces.0"]))
    inputs = clipseg_inputs(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clipseg(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        saved = [key for key in file.keys() if "vlsm_" not in key]
    assert len(saved) == 18 and all(".decoder." in key for key in saved)


@adapted
def test_a_checkpoint_holds_the_adapter_only(tuner, variant, tmp_path):
    model = adapt(tuner, variant, init_weights=True)
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        base_logits = model(**inputs).logits
    trained(model)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    tensors = [p for p in model.parameters() if p.requires_grad]
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size <= 4 * sum(p.numel() for p in tensors) + 256 * len(tensors) + 4096
    with torch.no_grad():
        expected = model(**inputs).logits
        assert (expected - base_logits).abs().max() > 1e-3
        loaded = PeftModel.from_pretrained(tiny_clipseg(), tmp_path, is_trainable=True)
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=0, rtol=0)
    loaded(**inputs).loss.backward()
    assert all(p.grad is not None for p in loaded.parameters() if p.requires_grad)


@tuners
def test_auto_peft_model_finds_the_base_by_itself(tuner, tmp_path):
    tiny_clipseg().save_pretrained(tmp_path / "base")
    base = type(tiny_clipseg()).from_pretrained(tmp_path / "base")
    model = trained(adapt(tuner, model=base))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)


@tuners
def test_the_record_of_places_decides_where_an_adapter_goes(tuner, tmp_path):
    model = adapt(tuner, layers=[1])
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    assert content["plugin_version"] == "0.1.0"
    assert set(content["resolved_modules"]) == {"V", "L", "C"}
    # As if a later version's declaration chose other layers for the same fields.
    content["layers"] = "all"
    path.write_text(json.dumps(content))
    loaded = PeftModel.from_pretrained(tiny_clipseg(), tmp_path)
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]


@tuners
def test_one_config_serves_two_models(tuner):
    config = CONFIGS[tuner](variant="V", adapter_dim=4, layers="all")
    wide = tiny_clipseg(extract_layers=[0, 2, 5])
    first, second = get_peft_model(tiny_clipseg(), config), get_peft_model(wide, config)
    counts = [len(model.peft_config["default"].resolved_modules["V"]) for model in (first, second)]
    assert counts == ([8, 12] if tuner == "dense" else [2, 3])


@tuners
def test_an_adapter_of_another_model_is_refused(tuner, tmp_path):
    adapt(tuner, "V", model=tiny_clipseg(extract_layers=[2, 5])).save_pretrained(tmp_path)
    text = {**tiny_clipseg().config.to_dict()["text_config"], "num_hidden_layers": 2}
    vision = {**tiny_clipseg().config.to_dict()["vision_config"], "num_hidden_layers": 3}
    other = tiny_clipseg(text_config=text, vision_config=vision, extract_layers=[0, 1])
    before = list(other.state_dict())
    with pytest.raises(
        ValueError, match="resolved_modules has .* does not have: the adapter was made for another model"
    ):
        PeftModel.from_pretrained(other, tmp_path)
    assert list(other.state_dict()) == before


@tuners
def test_models_of_no_family_need_target_modules(tuner):
    with pytest.raises(ValueError, match="target_modules is None, and Sequential belongs to no family"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), CONFIGS[tuner]())
    with pytest.raises(ValueError, match="CLIPSegModel belongs to no family.*allowed: models of CLIPSegFor"):
        get_peft_model(tiny_clipseg().clip, CONFIGS[tuner]())


@tuners
def test_excluded_modules_of_the_declaration(tuner):
    excluded = {"dense": r".*\.mlp\.fc2", "shallow": ["decoder"]}[tuner]
    model = adapt(tuner, exclude_modules=excluded)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable and not any("mlp" in name or "decoder" in name for name in trainable)
    model(**clipseg_inputs(model)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="leaves no place"):
        adapt(tuner, exclude_modules=".*")


@tuners
def test_deleting_the_last_adapter_leaves_the_base(tuner):
    base = tiny_clipseg()
    names = [name for name, _ in base.named_modules()]
    model = adapt(tuner, model=base)
    model.add_adapter("second", CONFIGS[tuner](variant="C", adapter_dim=3))
    model.set_adapter("second")
    model.delete_adapter("default")
    wrapped = [name for name, module in base.named_modules() if hasattr(module, "base_layer")]
    assert wrapped == ["clip.text_projection"]
    model.delete_adapter("second")
    assert [name for name, _ in base.named_modules()] == names
    assert "forward" not in base.__dict__ and "get_text_features" not in base.clip.__dict__
    model.add_adapter("third", CONFIGS[tuner](variant="VLC", adapter_dim=3, init_weights=False))
    model.set_adapter("third")
    model(**clipseg_inputs(model)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_adapter_of_the_other_type_is_refused():
    model = adapt("dense")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("second", ShallowAdapterConfig())


def test_a_shallow_target_that_takes_a_list_is_refused():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 2)

        def forward(self, states):
            return self.head(sum(states))

    model = get_peft_model(nn.Sequential(Sums()), ShallowAdapterConfig(target_modules=["0"], adapter_dim=4))
    states = [torch.randn(2, 8)] * 3
    with pytest.raises(TypeError, match="on Sums got a list; allowed: modules whose first argument is a tensor"):
        model(states)
    with model.disable_adapter():
        model(states)


def test_two_kinds_of_shallow_adapter_on_one_module_are_refused():
    model = get_peft_model(tiny_clipseg(), ShallowAdapterConfig(target_modules=["text_projection"], adapter_dim=4))
    with pytest.raises(ValueError, match="an adapter of another kind stands on 'clip.text_projection'"):
        model.add_adapter("second", ShallowAdapterConfig(variant="C"))


def test_end_of_text_ids_of_both_kinds():
    for eos in (2, 63):
        text = {**tiny_clipseg().config.to_dict()["text_config"], "eos_token_id": eos}
        model = adapt("shallow", "L", model=tiny_clipseg(text_config=text), init_weights="paper")
        inputs = clipseg_inputs(model)
        inputs["input_ids"][:, 3] = eos if eos == 63 else 63
        inputs["input_ids"][:, 4:] = 5
        with torch.no_grad():
            embedding = model.get_conditional_embeddings(batch_size=2, **prompt_of(inputs))
            with model.disable_adapter():
                text_output = model.get_base_model().clip.text_model(**prompt_of(inputs), output_hidden_states=True)
                base = model.get_conditional_embeddings(batch_size=2, **prompt_of(inputs))
        layer = model.get_base_model().clip.text_projection
        expected = base
        for index in (1, 3):
            state = text_output.hidden_states[index + 1][:, 3]
            expected = expected + state + layer.change(state, "default", f"text_{index}")
        torch.testing.assert_close(embedding, expected)


def test_every_family_is_in_the_table():
    assert [family.name for family in FAMILIES] == [family.model_type for family in peft_vlsm.architectures.FAMILIES]
    assert PeftConfig.from_peft_type(peft_type="VLSM_DENSE_ADAPTER", variant="C") == DenseAdapterConfig(variant="C")
