"""Models of no known family: a declaration by the user, in the adapter's config or registered by model_type."""

import json
from types import SimpleNamespace

import pytest
import torch
from models import CONFIGS
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel

from peft_vlsm import Architecture, DenseAdapterConfig, Encoder, ShallowAdapterConfig, register_architecture
from peft_vlsm.architectures import families


class Block(nn.Module):
    """OpenAI-CLIP's block: sequence first, attention that returns a tuple."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(width) for _ in range(layers)])

    def states(self, x):
        found = []
        for block in self.resblocks:
            x = block(x)
            found.append(x)
        return found


class Visual(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.transformer = Transformer(width, layers)


class Decoder(nn.Module):
    """Fed by intermediate states, which it weighs by the prompt."""

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.reduces = nn.ModuleList([nn.Linear(width, 8) for _ in range(2)])
        self.film = nn.Linear(text_width, 8)

    def forward(self, states, embedding):
        mixed = sum(reduce(state) for reduce, state in zip(self.reduces, states, strict=True))
        return (mixed * self.film(embedding)).sum(-1)


class Segmenter(nn.Module):
    """OpenAI-CLIP's layout with a decoder; the text projection is a bare parameter."""

    def __init__(self):
        super().__init__()
        self.visual = Visual(16, 4)
        self.token_embedding = nn.Embedding(30, 12)
        self.transformer = Transformer(12, 2)
        self.text_projection = nn.Parameter(torch.randn(12, 10))
        self.decoder = Decoder(16, 10)
        self.config = SimpleNamespace(model_type="own-segmenter", to_dict=lambda: {"model_type": "own-segmenter"})

    def forward(self, images, tokens):
        patches = self.visual.conv1(images).flatten(2).permute(2, 0, 1)
        states = self.visual.transformer.states(patches)
        text = self.transformer.states(self.token_embedding(tokens).transpose(0, 1))[-1][-1]
        return self.decoder([states[0], states[2]], text @ self.text_projection).transpose(0, 1)


LAYOUT = Architecture(
    model_type="own-segmenter",
    vision=Encoder("visual.transformer.resblocks", ("attn", "mlp"), width=16, batch_axis=1),
    text=Encoder("transformer.resblocks", ("attn", "mlp"), batch_axis=1),
    decoder="decoder",
    extract_layers=(0, 2),
    reasons={"C": "its text projection is a bare Parameter, which no adapter can wrap"},
)
RANDOM = torch.Generator().manual_seed(0)
INPUTS = {
    "images": torch.randn(3, 3, 32, 32, generator=RANDOM),
    "tokens": torch.randint(0, 30, (3, 7), generator=RANDOM),
}


def segmenter():
    torch.manual_seed(0)
    return Segmenter().eval()


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(families, "_registered", {})


@pytest.mark.parametrize(("tuner", "variant", "places"), [("dense", "VL", 10), ("dense", "V", 6), ("shallow", "V", 2)])
@pytest.mark.parametrize("registered", [True, False])
def test_openai_clips_layout(tuner, variant, places, registered, registry, tmp_path):
    fields = {"variant": variant, "layers": "all", "adapter_dim": 4, "init_weights": False}
    if registered:
        register_architecture(LAYOUT)
    else:
        fields["architecture"] = LAYOUT
    model = get_peft_model(segmenter(), CONFIGS[tuner](**fields)).eval()
    model(**INPUTS).square().mean().backward()
    adapters = [parameter for name, parameter in model.named_parameters() if "vlsm_" in name]
    assert len(adapters) == 4 * places
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters)
    with torch.no_grad():
        expected = model(**INPUTS)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(segmenter(), tmp_path, is_trainable=True)
        torch.testing.assert_close(loaded(**INPUTS), expected, atol=0, rtol=0)
        with model.disable_adapter():
            base = model(**INPUTS)
        # nn.MultiheadAttention computes in another way where its weights require a gradient.
        torch.testing.assert_close(base, segmenter().requires_grad_(False)(**INPUTS), atol=0, rtol=0)
        mixed = model(**INPUTS, adapter_names=["default", "__base__", "default"])
        torch.testing.assert_close(mixed, torch.stack([expected[0], base[1], expected[2]]))
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (content["architecture"] is None) == registered
    names = [name for name, _ in segmenter().named_modules()]
    assert [name for name, _ in model.unload().named_modules()] == names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DenseAdapterConfig(variant="C", architecture=LAYOUT), "variant has 'C', .*a bare Parameter.*allowed: V, L"),
        (ShallowAdapterConfig(variant="L", architecture=LAYOUT), "Shallow adapters cannot have on own-segmenter"),
        (DenseAdapterConfig(variant="V", layers=[3], architecture=LAYOUT), "layers has 3.*allowed: 0 to 2"),
        (ShallowAdapterConfig(variant="V", layers=[1], architecture=LAYOUT), r"some of extract_layers \[0, 2\]"),
        (DenseAdapterConfig(), "Segmenter belongs to no family"),
    ],
)
def test_what_a_declaration_does_not_have(config, message):
    model = segmenter()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config)
    assert list(model.state_dict()) == before


def test_a_known_family_is_not_registered_again(registry):
    with pytest.raises(ValueError, match="model_type is 'clip', which peft_vlsm declares itself"):
        register_architecture(Architecture(model_type="clip"))


TRUNKS = {
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "convnext": lambda: ConvNextModel(ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])),
}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("tuner", CONFIGS)
def test_a_trunk_of_convolutions(trunk, tuner):
    encoder = Encoder("encoder.stages.0", ("attn", "mlp"), width=8)
    declared = Architecture(model_type=trunk, vision=encoder, decoder="pooler")
    with pytest.raises(ValueError, match=r"has .* at '.*'; allowed: .*A trunk of convolutions \(ResNet, ConvNeXt\)"):
        get_peft_model(TRUNKS[trunk](), CONFIGS[tuner](variant="V", architecture=declared))
    with pytest.raises(ValueError, match="whose .* width is unknown; allowed: .*without convolutions"):
        get_peft_model(TRUNKS[trunk](), CONFIGS[tuner](target_modules=["encoder.stages.0.layers.0"]))


def test_a_text_model():
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = BertModel(BertConfig(vocab_size=40, **settings)).eval()
    config = DenseAdapterConfig(
        target_modules=["attention.output.dense", "output.dense"],
        layers_to_transform=[0, 2],
        layers_pattern="layer",
        adapter_dim=12,
        init_weights=False,
    )
    model = get_peft_model(base, config)
    inputs = {"input_ids": torch.randint(0, 40, (2, 6))}
    model(**inputs).last_hidden_state.cos().sum().backward()
    adapters = {name: parameter for name, parameter in model.named_parameters() if "vlsm_" in name}
    assert len(adapters) == 16 and not any("layer.1." in name for name in adapters)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters.values())
