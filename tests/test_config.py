"""Every wrong value is an error that names the field, the value and what is allowed."""

import pytest
from models import CONFIGS

DEFAULT_WIDTH = {"dense": 64, "shallow": 512}

WRONG = [
    ({"variant": ""}, "variant is ''"),
    ({"variant": "VX"}, "variant is 'VX'"),
    ({"variant": "vl"}, "variant is 'vl'"),
    ({"variant": "VV"}, "variant is 'VV'"),
    ({"variant": 3}, "variant is 3"),
    ({"variant": ["V"]}, r"variant is \['V'\]"),
    ({"adapter_dim": 0}, "adapter_dim is 0"),
    ({"adapter_dim": -4}, "adapter_dim is -4"),
    ({"adapter_dim": 2.5}, "adapter_dim is 2.5"),
    ({"adapter_dim": True}, "adapter_dim is True"),
    ({"adapter_dim": "64"}, "adapter_dim is '64'"),
    ({"cond_adapter_dim": 0}, "cond_adapter_dim is 0"),
    ({"layers": "some"}, "layers is 'some'"),
    ({"layers": []}, r"layers is \[\]"),
    ({"layers": [0, -1]}, r"layers is \[0, -1\]"),
    ({"layers": [0, 0]}, r"layers is \[0, 0\]"),
    ({"layers": [1.0]}, r"layers is \[1.0\]"),
    ({"layers": 3}, "layers is 3"),
    ({"layers": [0], "variant": "C"}, r"layers is \[0\], but variant 'C'"),
    ({"init_weights": "kaiming"}, "init_weights is 'kaiming'"),
    ({"init_weights": 1}, "init_weights is 1"),
    ({"init_weights": None}, "init_weights is None"),
    ({"activation": "rely"}, "activation is 'rely'"),
    ({"activation": "sigmoid"}, "activation is 'sigmoid', which is not zero at zero"),
    ({"activation": "relu2"}, "activation is 'relu2', which has no slope at zero"),
    ({"activation": "prelu", "output_activation": False}, "activation is 'prelu', which has parameters of its own"),
    ({"output_activation": "relu"}, "output_activation is 'relu'"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"dropout": -0.1}, "dropout is -0.1"),
    ({"dropout": "0.1"}, "dropout is '0.1'"),
    ({"scaling": 0}, "scaling is 0"),
    ({"scaling": float("nan")}, "scaling is nan"),
    ({"scaling": "learnt"}, "scaling is 'learnt'"),
    ({"scaling": 1001}, "scaling is 1001"),
    ({"reduction_factor": 0.5}, "reduction_factor is 0.5"),
    ({"reduction_factor": 4, "adapter_dim": 7}, "reduction_factor is 4 beside adapter_dim 7"),
    ({"adapter_dim_pattern": {"mlp": 0}}, "adapter_dim_pattern is {'mlp': 0}"),
    ({"adapter_dim_pattern": ["mlp"]}, r"adapter_dim_pattern is \['mlp'\]"),
    ({"adapter_dim_pattern": {"(mlp": 4}}, r"adapter_dim_pattern is '\(mlp'"),
    ({"architecture": "clip"}, "architecture is 'clip'"),
    ({"architecture": {"model_type": "x", "text_layers": "y"}}, "architecture has the field 'text_layers'"),
    ({"architecture": {}}, "architecture lacks the field 'model_type'"),
    ({"target_modules": []}, r"target_modules is \[\]"),
    ({"target_modules": ""}, "target_modules is ''"),
    ({"target_modules": "(lin"}, r"target_modules is '\(lin'"),
    ({"target_modules": [1]}, r"target_modules is \[1\]"),
    ({"target_modules": 5}, "target_modules is 5"),
    ({"exclude_modules": "["}, r"exclude_modules is '\['"),
    ({"modules_to_save": "decoder"}, "modules_to_save is 'decoder'"),
    ({"modules_to_save": [None]}, r"modules_to_save is \[None\]"),
    ({"layers_to_transform": [0]}, r"layers_to_transform is \[0\] without target_modules"),
    ({"layers_pattern": "layers"}, "layers_pattern is 'layers' without target_modules"),
    ({"target_modules": ["a"], "variant": "V"}, "variant is 'V' beside target_modules"),
    ({"target_modules": ["a"], "layers": "all"}, "layers is 'all' beside target_modules"),
    ({"target_modules": ["a"], "cond_adapter_dim": 8}, "cond_adapter_dim is 8 beside target_modules"),
    ({"target_modules": ["a"], "layers_to_transform": -1}, "layers_to_transform is -1"),
    ({"target_modules": ["a"], "layers_to_transform": []}, r"layers_to_transform is \[\]"),
    ({"target_modules": ["a"], "layers_to_transform": ["0"]}, r"layers_to_transform is \['0'\]"),
    ({"target_modules": ["a"], "layers_pattern": "h"}, "layers_pattern is 'h' without layers_to_transform"),
    ({"target_modules": ["a"], "layers_to_transform": 0, "layers_pattern": []}, r"layers_pattern is \[\]"),
]


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_a_wrong_value_is_named(tuner, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        CONFIGS[tuner](**fields)
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize("tuner", CONFIGS)
def test_defaults(tuner):
    config = CONFIGS[tuner]()
    assert (config.variant, config.layers, config.init_weights) == ("VL", "paper", True)
    assert (config.adapter_dim, config.cond_adapter_dim) == (DEFAULT_WIDTH[tuner], 256)
    assert config.target_modules is config.modules_to_save is config.resolved_modules is None


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize(("given", "resolved"), [("LV", "VL"), ("CLV", "VLC"), ("CV", "VC"), ("L", "L"), (None, "VL")])
def test_the_letters_come_in_any_order(tuner, given, resolved):
    assert CONFIGS[tuner](variant=given).variant == resolved


@pytest.mark.parametrize("tuner", CONFIGS)
def test_target_modules_replace_the_declaration(tuner):
    config = CONFIGS[tuner](target_modules=["lin0"], layers_to_transform=1, layers_pattern="layers")
    assert config.variant is None and config.layers is None
    assert config.target_modules == {"lin0"}


def test_text_residual_follows_the_initialisation():
    shallow = CONFIGS["shallow"]
    assert shallow(init_weights="paper").text_residual is True
    assert shallow().text_residual is False
    assert shallow(variant="VC").text_residual is None
    with pytest.raises(ValueError, match="text_residual is 1"):
        shallow(text_residual=1)
    with pytest.raises(ValueError, match="text_residual is True beside variant 'V'"):
        shallow(variant="V", text_residual=True)
    with pytest.raises(TypeError, match="text_residual"):
        CONFIGS["dense"](text_residual=True)
