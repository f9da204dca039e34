"""The embedded model segments what the prompt names, its files hold together, and its recipe runs as it says."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TRANSFORMERS_5, failure_of, run_example
from safetensors.torch import load_file
from scipy import ndimage
from transformers import AutoProcessor, CLIPSegForImageSegmentation, CLIPSegProcessor

ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny_clipseg"
if not TRANSFORMERS_5:
    pytest.skip("the embedded model's recipe needs transformers 5", allow_module_level=True)

sys.path.insert(0, str(ROOT / "examples"))

import pretrain_tiny  # noqa: E402
from tiny_recipe.evaluation import HELD_OUT_SEED, evaluate  # noqa: E402
from tiny_recipe.objects import BRIGHTNESSES, COLOURS, IMAGE_SIZE, KINDS, SIZES  # noqa: E402
from tiny_recipe.prompts import NUMBERS, make_contrast_pair, make_prompt  # noqa: E402
from tiny_recipe.scenes import make_scene  # noqa: E402

TEXTS = [
    "one small red circle, located in top left of the image",
    "What's that?! A naïve zebra, 漢字 and 🙂 at 37.5°C",
    "two medium pneumoconiosis opacities; ground-glass (bilateral)",
    "x",
]


@pytest.fixture(scope="module")
def model():
    return CLIPSegForImageSegmentation.from_pretrained(TINY)


@pytest.fixture(scope="module")
def processor():
    return CLIPSegProcessor.from_pretrained(TINY)


def run(*arguments: object) -> None:
    run_example(pretrain_tiny, *arguments)


def fail(capsys, *arguments: object) -> str:
    return failure_of(capsys, pretrain_tiny, *arguments)


# The scenes and prompts


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_and_an_index_always_give_the_same_scene(kind):
    for index in range(10):
        scene, again, other = (make_scene(seed, index, kind) for seed in (3, 3, 4))
        assert np.array_equal(scene.image, again.image) and not np.array_equal(scene.image, other.image)
        first, second = (make_prompt(scene, np.random.default_rng(index)) for scene in (scene, again))
        assert first.text == second.text and np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_holds_several_objects_that_do_not_overlap(kind):
    for index in range(50):
        scene = make_scene(0, index, kind)
        assert (
            scene.kind == kind and scene.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and scene.image.dtype == np.uint8
        )
        assert len(scene.objects) >= 2 and all(item.mask.sum() >= 40 for item in scene.objects)
        assert np.sum([item.mask for item in scene.objects], axis=0).max() == 1
        assert (np.ptp(scene.image, axis=2).max() == 0) == (kind != "colour")


@pytest.mark.parametrize("kind", ["colour", "greyscale"])
def test_the_words_agree_with_what_is_measured_in_image_and_mask(kind):
    palette = COLOURS if kind == "colour" else BRIGHTNESSES
    seen = set()
    for index in range(200):
        scene = make_scene(1, index, kind)
        prompt = make_prompt(scene, np.random.default_rng(index))
        words = set(re.findall(r"[a-z]+", prompt.text))
        seen |= words
        parts, count = ndimage.label(prompt.mask, structure=np.ones((3, 3)))
        assert count == len(prompt.named)
        assert words & set(NUMBERS) <= {NUMBERS[count]}
        for part in range(1, count + 1):
            rows, columns = np.nonzero(parts == part)
            mean = scene.image[rows, columns].mean(axis=0)
            for word in words & set(palette):
                assert min(palette, key=lambda name: np.abs(palette[name] - mean).sum()) == word, prompt.text
            extent = max(np.ptp(rows), np.ptp(columns)) / 2
            for word in words & set(SIZES):
                assert 0.7 * SIZES[word][0] - 1 <= extent <= SIZES[word][1] + 1, prompt.text
            if "located" in words and count == 1:
                middle = [(values.min() + values.max()) / 2 / IMAGE_SIZE for values in (rows, columns)]
                for value, low, high in zip(middle, ("top", "left"), ("bottom", "right"), strict=True):
                    assert (low in words) == (value < 0.31) or 0.31 <= value <= 0.37, prompt.text
                    assert (high in words) == (value > 0.69) or 0.63 <= value <= 0.69, prompt.text
    assert {"one", "two", "small", "large", "located", "top", "center", "circles"} | set(palette) <= seen


def objects_that_match(scene, text: str) -> set[int]:
    """Reads a prompt word by word, as a person would, and picks the objects that it describes."""
    if text == "the whole body":
        return set(range(len(scene.objects)))
    head, located, inside = re.fullmatch(r"(.*?)(?:, located in (.*) of the image| in the (.*))?", text).groups()
    places = (located or inside or "").split(", ")
    words = [word for word in head.split() if word not in {*NUMBERS, "a", "the"}]
    size = next((word for word in words if word in SIZES), None)
    colour = next((word for word in words if word in {*COLOURS, *BRIGHTNESSES}), None)
    noun = " ".join(word for word in words if word not in (size, colour))
    return {
        index
        for index, item in enumerate(scene.objects)
        if noun in (item.shape, f"{item.shape}s", f"{item.shape}es", "object", "objects")
        and size in (None, item.size)
        and colour in (None, item.colour)
        and (places == [""] or item.location in places)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_names_all_objects_that_match_it_and_no_other(kind):
    for index in range(150):
        scene = make_scene(2, index, kind)
        prompt = make_prompt(scene, np.random.default_rng(index))
        assert objects_that_match(scene, prompt.text) == set(prompt.named), prompt.text
        assert np.array_equal(prompt.mask, np.any([scene.objects[i].mask for i in prompt.named], axis=0))


def test_a_contrast_pair_names_two_objects():
    for index in range(50):
        scene = make_scene(HELD_OUT_SEED, index)
        pair = make_contrast_pair(scene, np.random.default_rng(index))
        if pair is not None:
            assert pair[0].text != pair[1].text and not (pair[0].mask & pair[1].mask).any()
            assert all(len(prompt.named) == 1 for prompt in pair)


# The stored model


def test_the_model_finds_what_the_prompt_names_on_held_out_scenes(model, processor):
    figures = evaluate(model, processor, scenes=200)
    assert figures["dice"] >= 0.80
    assert figures["prompt_following"] >= 0.90
    assert figures["dice_named"] >= 0.80 and figures["dice_other"] <= 0.10


def test_the_card_states_figures_that_meet_the_aim():
    card = (TINY / "README.md").read_text(encoding="utf-8")
    front_matter = card.split("---")[1]
    for line in ("license: apache-2.0", "library_name: transformers", "pipeline_tag: image-segmentation"):
        assert line in front_matter
    assert float(re.search(r"\| Dice, one random prompt per scene \| ([0-9.]+) \|", card)[1]) >= 0.80


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8_000_000


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_becomes_tokens_and_none_is_unknown(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert re.sub(r"\s", "", decoded) == re.sub(r"\s", "", text.lower())
    long = tokenizer(text * 100, truncation=True).input_ids
    assert len(long) == 77 and long[-1] == tokenizer.eos_token_id


def test_the_text_encoder_pools_the_end_of_text(model, processor):
    tokens = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.clip.text_model(**tokens)
    last = tokens.attention_mask.sum(1) - 1
    assert len(set(last.tolist())) > 1
    assert torch.equal(output.pooler_output, output.last_hidden_state[torch.arange(len(TEXTS)), last])
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.config.text_config.vocab_size == len(processor.tokenizer)


def test_adapters_of_every_kind_find_their_place(model):
    config = model.config
    assert config.text_config.hidden_size == config.projection_dim
    for encoder in (config.vision_config, config.text_config):
        assert max(config.extract_layers) < encoder.num_hidden_layers


def test_the_model_survives_a_round_trip(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = [make_scene(0, index).image for index in range(len(TEXTS))]
    logits = []
    for each, its_processor in (
        (model, processor),
        (CLIPSegForImageSegmentation.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)),
    ):
        inputs = its_processor(text=TEXTS, images=images, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits.append(each(**inputs).logits)
    assert logits[0].dtype == torch.float32 and logits[0].shape == (len(TEXTS), IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(*logits)


# The recipe

SMALL = ("--batch_size", 2, "--prompts", 2, "--eval_scenes", 3)


@pytest.fixture
def few_texts(monkeypatch):
    """Fewer scenes to train the tokenizer on, where the tokenizer does not matter."""
    monkeypatch.setattr(pretrain_tiny, "TOKENIZER_SCENES", 20)


def test_two_steps_write_a_model_that_the_script_can_measure(tmp_path, capsys):
    out = tmp_path / "new" / "out"
    run("--output_dir", out, "--max_train_steps", 2, *SMALL)
    figures = json.loads(capsys.readouterr().out)
    assert figures["scenes"] == 3 and 0 <= figures["dice"] <= 1
    assert [folder.name for folder in out.parent.iterdir()] == ["out"]
    assert {file.name for file in out.iterdir()} == {file.name for file in TINY.iterdir()}
    assert f"{figures['dice']:.4f}" in (out / "README.md").read_text(encoding="utf-8")
    assert (out / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    run("--evaluate", out, "--eval_scenes", 3)
    assert json.loads(capsys.readouterr().out) == figures


def test_the_encoders_train_and_an_interrupted_run_goes_on_exactly(tmp_path, capsys, few_texts, monkeypatch):
    run("--output_dir", tmp_path / "straight", "--max_train_steps", 3, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_tiny, "CHECKPOINT_STEPS", 2)
        patch.setattr(pretrain_tiny, "evaluate", None)
        with pytest.raises(TypeError):
            run("--output_dir", tmp_path / "cut", "--max_train_steps", 3, *SMALL)
    capsys.readouterr()
    assert not (tmp_path / "cut").exists()
    assert "--resume" in failure_of(
        capsys, pretrain_tiny, "--output_dir", tmp_path / "cut", "--max_train_steps", 3, *SMALL
    )
    assert "settings" in failure_of(
        capsys, pretrain_tiny, "--output_dir", tmp_path / "cut", "--resume", "--max_train_steps", 4, *SMALL
    )
    run("--output_dir", tmp_path / "cut", "--resume", "--max_train_steps", 3, *SMALL)
    straight, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "cut"))
    assert all(torch.equal(straight[name], cut[name]) for name in straight)

    torch.manual_seed(0)
    fresh = pretrain_tiny.build_model(pretrain_tiny.build_processor(0).tokenizer).state_dict()
    untrained = ("logit_scale", "visual_projection", "post_layernorm")
    for name, weight in straight.items():
        assert torch.equal(weight, fresh[name]) == any(part in name for part in untrained), name


def test_sharing_an_image_between_prompts_gives_the_logits_of_the_models_own_forward(model, processor):
    images = [make_scene(0, index).image for index in range(2)]
    texts = ["red circle", "one large blue square", "dark ring", "core"]
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    pixel_values = processor.image_processor(images, return_tensors="pt").pixel_values
    with torch.inference_mode():
        shared = pretrain_tiny.predict_masks(model, pixel_values, tokens, prompts=2)
        own = model(pixel_values=pixel_values.repeat_interleave(2, dim=0), **tokens).logits
    assert torch.allclose(shared, own, atol=1e-4)


def test_a_folder_with_something_in_it_is_replaced_only_when_asked(tmp_path, capsys, few_texts):
    (tmp_path / "notes.txt").write_text("mine")
    line = fail(capsys, "--output_dir", tmp_path, "--max_train_steps", 1, *SMALL)
    assert str(tmp_path) in line and "--overwrite_output_dir" in line
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    run("--output_dir", tmp_path, "--overwrite_output_dir", "--max_train_steps", 1, *SMALL)
    assert not (tmp_path / "notes.txt").exists() and (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--output_dir"),
        (("--nonsense",), "--nonsense"),
        (("--output_dir", "{tmp}/out", "--seed", "x"), "--seed"),
        (("--output_dir", "{tmp}/out", "--evaluate", "{tmp}"), "--evaluate"),
        (("--output_dir", "{tmp}/out", "--max_train_steps", 0), "--max_train_steps"),
        (("--output_dir", "{tmp}/out", "--batch_size", -1), "--batch_size"),
        (("--output_dir", "{tmp}/out", "--prompts", 0), "--prompts"),
        (("--output_dir", "{tmp}/out", "--eval_scenes", 0), "--eval_scenes"),
        (("--output_dir", "{tmp}/out", "--seed", -1), "--seed"),
        (("--output_dir", "{tmp}/out", "--seed", HELD_OUT_SEED), "--seed"),
        (("--output_dir", "{tmp}/out", "--learning_rate", "nan"), "--learning_rate"),
        (("--output_dir", "{tmp}/out", "--resume"), "--resume"),
        (("--output_dir", "{tmp}/file"), "file"),
        (("--output_dir", "{tmp}/file/out"), "file"),
        (("--output_dir", "."), "current folder"),
        (("--evaluate", "{tmp}/nowhere"), "nowhere"),
        (("--evaluate", "{tmp}/broken"), "broken"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, capsys, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert named in fail(capsys, *(str(argument).format(tmp=tmp_path) for argument in arguments))
    assert not (tmp_path / "out").exists()
