"""Adapters on any torch model: linear layers, whole blocks, tuples, keywords, embeddings."""

import copy

import pytest
import torch
from models import CONFIGS
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig


class Block(nn.Module):
    """A transformer block in OpenAI-CLIP's layout: sequence first, attention that returns a tuple."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.ln_1 = nn.LayerNorm(width)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.h = nn.ModuleList([Block() for _ in range(3)])
        self.conv1d = Conv1D(8, 8)
        self.head = nn.Linear(in_features=8, out_features=5)

    def forward(self, ids):
        x = self.embed(ids).transpose(0, 1).contiguous()
        for block in self.h:
            x = block(x)
        return self.head(self.conv1d(x)).mean(0)


IDS = torch.arange(12).reshape(2, 6)
# target_modules, other fields -> the wrapped modules; None where that tuner cannot adapt them
TARGETS = [
    (["mlp"], {}, ["h.0.mlp", "h.1.mlp", "h.2.mlp"]),
    (["attn"], {}, ["h.0.attn", "h.1.attn", "h.2.attn"]),
    (["conv1d", "head"], {}, ["conv1d", "head"]),
    ("head", {}, ["head"]),
    (r"h\.[02]\.(mlp|attn)", {}, ["h.0.attn", "h.0.mlp", "h.2.attn", "h.2.mlp"]),
    (["ln_1"], {}, ["h.0.ln_1", "h.1.ln_1", "h.2.ln_1"]),
    (["mlp", "head"], {"exclude_modules": ["h.1.mlp"]}, ["h.0.mlp", "h.2.mlp", "head"]),
    (["mlp"], {"layers_to_transform": [1, 2]}, ["h.1.mlp", "h.2.mlp"]),
    (r".*mlp", {"layers_to_transform": 2}, ["h.2.mlp"]),
    (r".*mlp", {"layers_to_transform": 1, "layers_pattern": "h"}, ["h.1.mlp"]),
    (r"h\.\d", {"layers_to_transform": [0]}, ["h.0"]),
    ("all-linear", {"exclude_modules": r".*attn.*"}, ["h.0.mlp.0", "h.0.mlp.2", "h.1.mlp.0", "h.1.mlp.2", "h.2.mlp.0",
                                                      "h.2.mlp.2", "conv1d", "head"]),
]  # fmt: skip


def build():
    torch.manual_seed(0)
    return Net().eval()


def wrapped(model):
    return [name for name, module in model.named_modules() if type(module).__module__ == "peft_vlsm.tuners.layer"]


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize(("targets", "fields", "expected"), TARGETS, ids=[f"{row[0]}-{row[1]}" for row in TARGETS])
def test_any_torch_model(tuner, targets, fields, expected, tmp_path):
    base = build()
    names = [name for name, _ in base.named_modules()]
    logits = base(IDS)
    config = CONFIGS[tuner](target_modules=targets, adapter_dim=3, init_weights=False, **fields)
    model = get_peft_model(base, config)
    assert wrapped(base) == expected
    model(IDS).sum().backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 4 * len(expected)
    assert all(p.grad is not None and p.grad.any() for p in trainable.values())
    adapted = model(IDS)
    assert not torch.allclose(adapted, logits, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS), logits, atol=0, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    torch.testing.assert_close(loaded(IDS), adapted, atol=0, rtol=0)
    assert [name for name, _ in model.unload().named_modules()] == names


def test_dense_adapts_what_a_module_gives_and_shallow_what_it_takes():
    base = build()
    x = torch.randn(4, 8)
    expected = base.head(x)
    dense = get_peft_model(copy.deepcopy(base), DenseAdapterConfig(target_modules=["head"], init_weights=False))
    shallow = get_peft_model(copy.deepcopy(base), ShallowAdapterConfig(target_modules=["head"], init_weights=False))
    layer = dense.get_base_model().head
    torch.testing.assert_close(layer(x), expected + layer.change(expected, "default"))
    layer = shallow.get_base_model().head
    torch.testing.assert_close(layer(x), base.head(x + layer.change(x, "default")))
    torch.testing.assert_close(layer(input=x), layer(x))


def test_the_rest_of_a_tuple_stays():
    model = get_peft_model(build(), DenseAdapterConfig(target_modules=["attn"], init_weights=False))
    attention = model.get_base_model().h[0].attn
    x = torch.randn(3, 2, 8)
    output, weights = attention(x, x, x)
    with model.disable_adapter():
        base_output, base_weights = attention(x, x, x)
    assert torch.equal(weights, base_weights) and not torch.equal(output, base_output)


def test_a_wrapper_answers_for_the_wrapped_module():
    model = get_peft_model(build(), DenseAdapterConfig(target_modules=["attn", "head"]))
    base = model.get_base_model()
    assert base.h[0].attn.embed_dim == 8 and base.head.out_features == 5
    assert base.head.weight is base.head.base_layer.weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = base.head.no_such_thing


def test_several_active_adapters_act_in_their_order():
    model = get_peft_model(build(), DenseAdapterConfig(target_modules=["head"], init_weights=False))
    model.add_adapter("b", DenseAdapterConfig(target_modules=["head"], init_weights=False))
    head = model.get_base_model().head
    x = head.base_layer(torch.randn(4, 8))
    outputs = []
    for order in (["default", "b"], ["b", "default"]):
        model.base_model.set_adapter(order)
        y = x
        for name in order:
            y = y + head.change(y, name)
        torch.testing.assert_close(head.adapt(x), y)
        outputs.append(y)
    assert not torch.allclose(*outputs)


def test_the_wrapper_takes_over_train_and_eval_mode():
    model = get_peft_model(build(), DenseAdapterConfig(target_modules=["head"]))
    assert not model.get_base_model().head.training
    assert model.train().get_base_model().head.training


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["h"], "ModuleList, whose .* width is unknown"),
        ([r"h.0.mlp.1"], "GELU, whose .* width is unknown"),
        (["mlp", "mlp.0"], "matches 'h.0.mlp.0' inside the adapted 'h.0.mlp'"),
        ("all-linear", "matches 'h.0.attn.out_proj', whose weight nn.MultiheadAttention reads.*allowed: 'h.0.attn'"),
        (["nothing"], r"Target modules \{'nothing'\} not found in the base model"),
    ],
)
def test_targets_that_cannot_be(tuner, targets, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(build(), CONFIGS[tuner](target_modules=targets))


def test_dense_adapts_an_embeddings_vectors_and_shallow_refuses_its_ids():
    model = get_peft_model(build(), DenseAdapterConfig(target_modules=["embed"], init_weights=False))
    model(IDS).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="Embedding, whose input width is unknown"):
        get_peft_model(build(), ShallowAdapterConfig(target_modules=["embed"]))


def test_a_second_adapter_inside_a_wrapped_block_is_refused():
    model = get_peft_model(build(), DenseAdapterConfig(target_modules=["mlp"]))
    with pytest.raises(ValueError, match="matches 'h.0.mlp.2' inside the adapted 'h.0.mlp'"):
        model.add_adapter("b", DenseAdapterConfig(target_modules=["mlp.2"]))
    model.add_adapter("c", DenseAdapterConfig(target_modules=["mlp"]))


def test_a_tensor_of_another_width_is_named():
    class Odd(nn.Sequential):
        def forward(self, x):
            return super().forward(x)[..., :2]

    base = nn.ModuleDict({"odd": Odd(nn.Linear(4, 4))})
    base.forward = lambda x: base["odd"](x)
    model = get_peft_model(base, DenseAdapterConfig(target_modules=["odd"]))
    with pytest.raises(ValueError, match=r"an adapter of width 4 on Odd got a tensor of shape \(1, 2\)"):
        model(torch.ones(1, 4))


def test_an_output_that_is_no_tensor_is_named():
    class Gives(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x):
            return {"y": self.lin(x)}

    model = get_peft_model(nn.Sequential(Gives()), DenseAdapterConfig(target_modules=["0"]))
    with pytest.raises(TypeError, match="a Dense adapter on Gives got a dict; allowed: modules that return a tensor"):
        model(torch.ones(1, 3))
