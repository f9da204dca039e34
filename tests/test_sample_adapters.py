"""One adapter for each sample: every row gives what its own adapter gives alone, in each family."""

import pytest
import torch
from models import ADAPTED, ADAPTED_IDS, CONFIGS, clipseg_inputs, tiny_clipseg
from peft import get_peft_model
from torch import nn

from peft_vlsm import DenseAdapterConfig
from peft_vlsm.tuners.sample_adapters import Samples, rows_of_adapters

# GroupViT and the CLIP-like models compare every image with every prompt, so a row of their output mixes samples.
PAIRED = ("clipseg", "sam3", "owlvit", "owlv2")
rows = [(row, name) for row, name in zip(ADAPTED, ADAPTED_IDS, strict=True) if row[0].name in PAIRED]


@pytest.mark.parametrize("row", [row for row, _ in rows], ids=[name for _, name in rows])
def test_each_row_is_its_own_adapters(row):
    family, tuner, variant = row
    model = get_peft_model(family.build(), CONFIGS[tuner](variant=variant, adapter_dim=6, init_weights=False))
    torch.manual_seed(5)
    model.add_adapter("second", CONFIGS[tuner](variant=variant, adapter_dim=3, init_weights=False))
    model.eval()
    inputs = family.inputs(model, batch=3)
    inputs.pop("labels", None)
    with torch.no_grad():
        expected = {}
        for name in ("default", "second"):
            model.set_adapter(name)
            expected[name] = family.run(model, inputs)
        with model.disable_adapter():
            expected["__base__"] = family.run(model, inputs)
        for names in (["second", "__base__", "default"], ["default", "default", "second"]):
            mixed = family.run(model, {**inputs, "adapter_names": names})
            for index, name in enumerate(names):
                torch.testing.assert_close(mixed[index], expected[name][index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(family.run(model, inputs), expected["second"], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["default"], "same as the number of inputs, but got 1 names, and 2 samples in an adapted tensor of shape"),
        (["default"] * 3, "but got 3 names"),
        (["default", "other"], "non-existing adapter.*: other; allowed: default and __base__"),
        ("default", "adapter_names is 'default'; allowed: a list"),
        ([], r"adapter_names is \[\]"),
    ],
)
def test_wrong_names(names, message):
    model = get_peft_model(tiny_clipseg(), DenseAdapterConfig(adapter_dim=4)).eval()
    inputs = clipseg_inputs(model)
    with pytest.raises(ValueError, match=message):
        model(**inputs, adapter_names=names)
    model(**inputs)


def test_training_is_refused():
    model = get_peft_model(tiny_clipseg(), DenseAdapterConfig(adapter_dim=4)).train()
    with pytest.raises(ValueError, match="training mode"):
        model(**clipseg_inputs(model), adapter_names=["default", "__base__"])


def test_a_decoder_that_is_saved_too_is_refused():
    model = get_peft_model(tiny_clipseg(), DenseAdapterConfig(adapter_dim=4, modules_to_save=["decoder"])).eval()
    inputs = clipseg_inputs(model)
    with pytest.raises(ValueError, match="modules_to_save that take a list of tensors"):
        model(**inputs, adapter_names=["default", "__base__"])
    with torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_with_the_sequence_first(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model = get_peft_model(
        Net(), DenseAdapterConfig(target_modules=["attn"], adapter_dim=4, init_weights=False)
    ).eval()
    states = torch.randn(2, 5, 8)
    if not batch_first:
        states = states.transpose(0, 1)
    with torch.no_grad():
        adapted = model(states)
        with model.disable_adapter():
            base = model(states)
        mixed = model(states, adapter_names=["__base__", "default"])
    axis = 0 if batch_first else 1
    torch.testing.assert_close(mixed.select(axis, 0), base.select(axis, 0))
    torch.testing.assert_close(mixed.select(axis, 1), adapted.select(axis, 1))


def test_rows_of_folded_samples():
    samples = Samples(["a", "__base__", "b"], folded=True)
    found = {name: rows.tolist() for name, rows in rows_of_adapters(samples, torch.zeros(6, 2))}
    assert found == {"a": [0, 1], "b": [4, 5]}
    with pytest.raises(ValueError, match="allowed: one name for each sample"):
        list(rows_of_adapters(Samples(["a", "b", "c"]), torch.zeros(6, 2)))
