"""What peft tells of a model with our adapters: the status of its layers and of the model, and no mix with LoRA."""

import pytest
from models import CONFIGS, tiny_clipseg
from peft import LoraConfig, get_layer_status, get_model_status, get_peft_model

tuners = pytest.mark.parametrize("tuner", CONFIGS)


@tuners
def test_the_status_of_layers_and_model(tuner):
    model = get_peft_model(tiny_clipseg(), CONFIGS[tuner](variant="VLC", adapter_dim=4))
    model.add_adapter("second", CONFIGS[tuner](variant="C", adapter_dim=3))
    layers = {status.name: status for status in get_layer_status(model)}
    conditional = layers["model.clip.text_projection"]
    assert conditional.enabled and conditional.active_adapters == ["default"] and conditional.merged_adapters == []
    assert conditional.available_adapters == ["default", "second"]
    assert conditional.requires_grad == {"default": True, "second": False}
    status = get_model_status(model)
    assert status.adapter_model_type == type(model.base_model).__name__
    assert status.num_adapter_layers == len(layers) == {"dense": 13, "shallow": 2}[tuner]
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert status.active_adapters == ["default"] and status.available_adapters == ["default", "second"]
    model.set_adapter("second")
    assert get_model_status(model).active_adapters == ["second"]
    with model.disable_adapter():
        assert get_model_status(model).enabled is False


@tuners
def test_an_adapter_beside_lora_is_refused(tuner):
    with pytest.raises(ValueError, match="not compatible|Compatible"):
        get_peft_model(tiny_clipseg(), CONFIGS[tuner](), mixed=True)
    mixed = get_peft_model(tiny_clipseg(), LoraConfig(target_modules=["q_proj"]), mixed=True)
    before = list(mixed.state_dict())
    with pytest.raises(ValueError, match="Compatible"):
        mixed.add_adapter("second", CONFIGS[tuner]())
    assert list(mixed.state_dict()) == before
    lora = get_peft_model(tiny_clipseg(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        lora.add_adapter("second", CONFIGS[tuner]())
