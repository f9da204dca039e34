"""The weighted average of adapters: parameters, saving, and what is refused."""

import pytest
import torch
from models import CONFIGS, clipseg_inputs, tiny_clipseg
from peft import PeftModel, get_peft_model

from peft_vlsm.tuners.average import _state_of


def two_adapters(tuner, **second):
    fields = {"variant": "VLC", "adapter_dim": 6, "init_weights": False}
    model = get_peft_model(tiny_clipseg(), CONFIGS[tuner](**fields), adapter_name="first")
    torch.manual_seed(5)
    model.add_adapter("second", CONFIGS[tuner](**{**fields, **second}))
    return model.eval()


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize(
    ("weights", "shares"),
    [(None, (0.5, 0.5)), ([1.0, 3.0], (0.25, 0.75)), ([1, 0], (1.0, 0.0)), ([2.0, -1.0], (2.0, -1.0))],
)
def test_the_average_of_two(tuner, weights, shares, tmp_path):
    model = two_adapters(tuner)
    model.add_weighted_adapter(["first", "second"], weights, "soup")
    states = [_state_of(model.base_model, name) for name in ("first", "second", "soup")]
    assert len(states[2]) == sum(".first." in name for name, _ in model.named_parameters())
    for key, value in states[2].items():
        torch.testing.assert_close(value, shares[0] * states[0][key] + shares[1] * states[1][key])
    assert model.active_adapters == ["first"]
    model.set_adapter("soup")
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.save_pretrained(tmp_path, selected_adapters=["soup"])
        loaded = PeftModel.from_pretrained(tiny_clipseg(), tmp_path / "soup")
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=0, rtol=0)


def test_modules_to_save_are_averaged_too():
    model = get_peft_model(
        tiny_clipseg(), CONFIGS["dense"](adapter_dim=4, modules_to_save=["decoder"]), adapter_name="first"
    )
    model.add_adapter("second", CONFIGS["dense"](adapter_dim=4, modules_to_save=["decoder"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".second." in name:
                parameter.add_(1.0)
    model.add_weighted_adapter(["first", "second"], None, "soup")
    first, soup = (_state_of(model.base_model, name) for name in ("first", "soup"))
    decoder = [key for key in first if "decoder" in key]
    assert decoder
    for key in decoder:
        torch.testing.assert_close(soup[key], first[key] + 0.5)


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "message"),
    [
        (["first", "third"], None, "soup", "adapters has 'third'; allowed: first, second"),
        ([], None, "soup", r"adapters is \[\]"),
        ("first", None, "soup", "adapters is 'first'"),
        (["first", "second"], [1.0], "soup", "weights is"),
        (["first", "second"], [1.0, -1.0], "soup", "a sum that is not zero"),
        (["first", "second"], [1.0, float("nan")], "soup", "weights is"),
        (["first", "second"], None, "second", "adapter_name is 'second', which is there already"),
    ],
)
def test_what_gives_no_average(adapters, weights, name, message):
    model = two_adapters("dense")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(adapters, weights, name)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("second", [{"adapter_dim": 5}, {"variant": "V"}, {"layers": "all"}], ids=str)
def test_adapters_of_different_shapes(second):
    model = two_adapters("dense", **second)
    with pytest.raises(ValueError, match="'second', which differs from 'first' in its places or widths"):
        model.add_weighted_adapter(["first", "second"], None, "soup")
