"""Equal to the paper's own code: logits, loss, gradients and the number of trainable parameters."""

import pytest
import torch
from models import CONFIGS, REFERENCE, reference_case
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from peft_vlsm import load_vlsm_adapter_checkpoint
from peft_vlsm.tuners.checkpoints import paper_parameters

CASES = [(m, t, v) for m in ("tiny", "refined") for t in CONFIGS for v in ("V", "VL", "VLC")]
FULL_SIZE = {
    ("dense", "V"): 1_784_448,
    ("dense", "VL"): 2_974_464,
    ("dense", "VLC"): 3_237_376,
    ("shallow", "V"): 2_363_136,
    ("shallow", "VL"): 3_939_072,
    ("shallow", "VLC"): 4_201_984,
}


def trainable(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("init_weights", [True, "paper", False], ids=str)
@pytest.mark.parametrize(("model_name", "tuner", "variant"), CASES)
def test_the_papers_figures(model_name, tuner, variant, init_weights):
    model, inputs, figures = reference_case(model_name, tuner, variant)
    with safe_open(REFERENCE / model_name / f"{tuner}_{variant}.safetensors", "pt") as file:
        facts = file.metadata()
    config = CONFIGS[tuner](variant=variant, adapter_dim=int(facts["adapter_dim"]), init_weights=init_weights)
    peft_model = get_peft_model(model, config)
    assert trainable(peft_model) == int(facts["trainable"])

    weights = {key.removeprefix("adapter."): value for key, value in figures.items() if key.startswith("adapter.")}
    load_vlsm_adapter_checkpoint(peft_model, weights)
    mask = inputs.pop("mask")
    logits = peft_model(**inputs).logits.unsqueeze(1)
    torch.testing.assert_close(logits, figures["logits"], atol=1e-5, rtol=0)
    loss = F.binary_cross_entropy_with_logits(logits, mask)
    torch.testing.assert_close(loss, figures["loss"].reshape(()), atol=1e-6, rtol=0)
    loss.backward()
    gradients = {key.removeprefix("grad."): value for key, value in figures.items() if key.startswith("grad.")}
    parameters = paper_parameters(peft_model.base_model, "default")
    assert set(gradients) == set(parameters)
    for key, gradient in gradients.items():
        torch.testing.assert_close(parameters[key].grad, gradient, atol=1e-6, rtol=0, msg=key)


@pytest.mark.parametrize("model_name", ["tiny", "refined"])
def test_the_base_model_is_the_papers(model_name):
    model, inputs, _ = reference_case(model_name, "dense", "V")
    inputs.pop("mask")
    expected = load_file(REFERENCE / model_name / "base_output.safetensors")["logits"]
    torch.testing.assert_close(model(**inputs).logits.unsqueeze(1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tuner", "variant"), FULL_SIZE, ids=str)
def test_full_size_counts(tuner, variant):
    with torch.device("meta"):
        model = CLIPSegForImageSegmentation(CLIPSegConfig())
        peft_model = get_peft_model(model, CONFIGS[tuner](variant=variant))
    assert trainable(peft_model) == FULL_SIZE[tuner, variant]
