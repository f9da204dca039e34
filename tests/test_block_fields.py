"""The fields that vary the block, on CLIPSeg: each has its effect, starts without one on the output, and is saved."""

import itertools

import pytest
import torch
from models import CONFIGS, clipseg_inputs, tiny_clipseg
from peft import PeftModel, get_peft_model

COMBINATIONS = [
    {"activation": activation, "output_activation": output, "scaling": scaling, "dropout": dropout}
    for activation, output, scaling, dropout in itertools.product(
        ("relu", "gelu", "silu"), (True, False), (0.25, "learned"), (0.0, 0.2)
    )
] + [{"activation": "sigmoid", "output_activation": False}]
tuners = pytest.mark.parametrize("tuner", CONFIGS)


def adapt(tuner, **fields):
    torch.manual_seed(4)
    return get_peft_model(tiny_clipseg(), CONFIGS[tuner](**{"variant": "VLC", **fields}))


def adapter_parameters(model):
    return {name: parameter for name, parameter in model.named_parameters() if "vlsm_" in name}


def widths(model):
    return {
        name.partition(".vlsm_")[0].removeprefix("base_model.model."): len(parameter)
        for name, parameter in adapter_parameters(model).items()
        if name.endswith("fc1.default.weight")
    }


@tuners
@pytest.mark.parametrize("fields", COMBINATIONS, ids=str)
def test_every_combination_starts_without_an_effect_and_trains(tuner, fields, tmp_path):
    model = adapt(tuner, adapter_dim=16, **fields)
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        base = tiny_clipseg()(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, base, atol=1e-4, rtol=0)
    start = {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}
    assert any("scale" in name for name in start) == (fields.get("scaling") == "learned")
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(3):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, parameter in adapter_parameters(model).items() if torch.equal(parameter, start[name])] == []
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert (expected - base).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_clipseg(), tmp_path)
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=0, rtol=0)


@tuners
@pytest.mark.parametrize(
    ("field", "value"), [("activation", "gelu"), ("output_activation", False), ("scaling", 0.5), ("scaling", 2.0)]
)
def test_a_field_changes_what_the_adapter_does(tuner, field, value):
    inputs = clipseg_inputs(tiny_clipseg())
    with torch.no_grad():
        plain = adapt(tuner, init_weights=False)(**inputs).logits
        varied = adapt(tuner, init_weights=False, **{field: value})(**inputs).logits
    assert (plain - varied).abs().max() > 1e-3


@tuners
def test_dropout_acts_in_training_alone(tuner):
    model = adapt(tuner, init_weights=False, dropout=0.5)
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        plain = adapt(tuner, init_weights=False)(**inputs).logits
        torch.testing.assert_close(model.eval()(**inputs).logits, plain, atol=0, rtol=0)
        model.train()
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_the_reduction_factor_follows_the_hidden_size():
    found = widths(adapt("dense", variant="VL", reduction_factor=4))
    assert {width for name, width in found.items() if "vision" in name} == {8}
    assert {width for name, width in found.items() if "text" in name} == {6}
    assert set(widths(adapt("dense", variant="V", reduction_factor=1000)).values()) == {1}


def test_widths_by_pattern():
    pattern = {"mlp.fc2": 5, r".*text_model.*\.[01]\.self_attn\.out_proj": 3, "text_projection": 7}
    found = widths(adapt("dense", adapter_dim=9, adapter_dim_pattern=pattern))
    for name, width in found.items():
        text = "text_model" in name and any(f".{index}." in name for index in (0, 1))
        expected = 5 if "mlp" in name else 7 if "projection" in name else 3 if text else 9
        assert width == expected, name
    shallow = adapt("shallow", adapter_dim=9, adapter_dim_pattern={r"vision_model.*layers\.3": 4})
    slots = {name: len(p) for name, p in adapter_parameters(shallow).items() if "fc1.default.weight" in name}
    assert sorted(slots.values()) == [4, 9, 9, 9, 256]


@tuners
def test_a_pattern_that_matches_nothing(tuner):
    with pytest.raises(ValueError, match="adapter_dim_pattern has 'mlp.fc3', which matches no module that is adapted"):
        adapt(tuner, adapter_dim_pattern={"mlp.fc3": 4})
