"""From variant and layers to places, and the errors for layers that cannot be."""

import pytest
from models import tiny_clipseg

from peft_vlsm.architectures.clipseg import CLIPSEG
from peft_vlsm.architectures.placement import dense_placement, reader_of_state, shallow_placement
from peft_vlsm.architectures.reach import reached_vision_layers

# (extract_layers, vision depth, text depth, layers) -> the vision and text layers that Dense adapts
DENSE = [
    ([1, 3], 6, 5, "paper", [0, 1, 2], [0, 1, 2]),
    ([1, 3], 6, 5, "all", [0, 1, 2, 3], [0, 1, 2, 3, 4]),
    ([1, 3], 6, 2, "paper", [0, 1, 2], [0, 1]),
    ([3, 1], 6, 5, "paper", [0, 1, 2], [0, 1, 2]),
    ([1, 3], 6, 5, [3, 0], [3, 0], [3, 0]),
    ([0, 5], 6, 7, "all", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]),
]


def build(extract_layers, vision_depth=6, text_depth=5, text_width=24):
    template = tiny_clipseg().config.to_dict()
    vision = {**template["vision_config"], "num_hidden_layers": vision_depth}
    text = {**template["text_config"], "num_hidden_layers": text_depth, "hidden_size": text_width}
    return tiny_clipseg(extract_layers=extract_layers, vision_config=vision, text_config=text)


@pytest.mark.parametrize(("extract_layers", "vision", "text", "layers", "in_vision", "in_text"), DENSE)
def test_dense(extract_layers, vision, text, layers, in_vision, in_text):
    places = dense_placement(CLIPSEG, build(extract_layers, vision, text), "VLC", layers)
    parts = ("self_attn.out_proj", "mlp.fc2")
    assert places == {
        "V": [f"clip.vision_model.encoder.layers.{i}.{part}" for i in in_vision for part in parts],
        "L": [f"clip.text_model.encoder.layers.{i}.{part}" for i in in_text for part in parts],
        "C": ["clip.text_projection"],
    }


@pytest.mark.parametrize("variant", ["V", "L", "C", "VC"])
def test_only_the_letters_of_the_variant(variant):
    model = build([1, 3])
    assert list(dense_placement(CLIPSEG, model, variant, "paper")) == list(variant)
    assert list(shallow_placement(CLIPSEG, model, variant, "paper")) == list(variant)


@pytest.mark.parametrize(
    ("variant", "layers", "message"),
    [
        ("V", [0, 4], "layers has 4, .* vision .* 0 to 3"),
        ("L", [5], "layers has 5, .* text .* 0 to 4"),
        ("VL", [4], "layers has 4, .* vision"),
    ],
)
def test_dense_layers_that_cannot_be(variant, layers, message):
    with pytest.raises(ValueError, match=message):
        dense_placement(CLIPSEG, build([1, 3]), variant, layers)


def test_papers_choice_of_no_layer_is_an_error():
    model = build([0])
    with pytest.raises(ValueError, match="layers is 'paper'.*allowed: 'all'"):
        dense_placement(CLIPSEG, model, "V", "paper")
    assert len(dense_placement(CLIPSEG, model, "V", "all")["V"]) == 2


@pytest.mark.parametrize("layers", ["paper", "all", [3, 1], [1]])
def test_shallow(layers):
    chosen = [1, 3] if isinstance(layers, str) else layers
    assert shallow_placement(CLIPSEG, build([1, 3]), "VLC", layers) == {
        "V": [f"decoder@clip.vision_model.encoder.layers.{i}" for i in chosen],
        "L": [f"clip.text_projection@clip.text_model.encoder.layers.{i}" for i in chosen],
        "C": ["clip.text_projection"],
    }


def test_shallow_layers_that_cannot_be():
    with pytest.raises(ValueError, match=r"layers has 2; allowed for Shallow: some of extract_layers \[1, 3\]"):
        shallow_placement(CLIPSEG, build([1, 3]), "V", [2])
    shallow_text = build([1, 3], text_depth=3)
    with pytest.raises(ValueError, match="layers has 3, but the text encoder that L adapts has 3 layers"):
        shallow_placement(CLIPSEG, shallow_text, "VL", "paper")
    assert shallow_placement(CLIPSEG, shallow_text, "L", [1])
    assert shallow_placement(CLIPSEG, shallow_text, "VC", "paper")
    with pytest.raises(ValueError, match="text states of size 32 to a conditional embedding of size 24"):
        shallow_placement(CLIPSEG, build([1, 3], text_width=32), "L", "paper")


def test_what_reads_a_state():
    model = build([1, 3])
    assert reader_of_state(CLIPSEG.text, model, 1) == "clip.text_model.encoder.layers.2"
    assert reader_of_state(CLIPSEG.text, model, 4) == "clip.text_model.final_layer_norm"
    assert reached_vision_layers(CLIPSEG, model) == 4
