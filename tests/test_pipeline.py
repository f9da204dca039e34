"""pipeline("text-prompted-segmentation", ...) of transformers: every kind of model and image, and bad input."""

import io
import json
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import move_trainable_weights, tiny_processor, write_dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from segmenters import write_finetuned, write_sam3_model
from torch.nn import functional
from transformers import CLIPSegForImageSegmentation, pipeline
from transformers.models.clipseg.modeling_clipseg import CLIPSegEncoderLayer

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig, text_prompted_segmentation
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import load_base, load_finetuned, save_finetuned
from peft_vlsm.segmentation.prediction import image_inputs
from peft_vlsm.segmentation.prediction.pipeline import entry_of

TASK = "text-prompted-segmentation"
PROMPTS = ["red disc", "one blue disc"]
KINDS = {
    "dense": DenseAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4),
    "shallow": ShallowAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4),
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "decoder": None,
    "full": None,
}


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """Output folders of every kind, with weights that training has moved; a base model; an adapter of a SAM3."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(base, folder / "base")
    return write_finetuned(folder, base, KINDS)


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam3")
    model, processor = load_base(str(write_sam3_model(folder / "base")))
    model = get_peft_model(model, DenseAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4))
    move_trainable_weights(model)
    save_finetuned(model, processor, folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images of 40 x 36 pixels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", {"test": 2}) / "images"


@pytest.fixture(scope="module")
def segment(models):
    return pipeline(TASK, model=str(models / "dense"), device="cpu")


@torch.no_grad()
def _probabilities(folder, file, prompt, side=None):
    """What the model answers to this image and prompt alone, at the image's size; and its presence."""
    model, processor = load_finetuned(folder, None, side)
    side = fit_processor(processor, model.config, side)
    with Image.open(file) as image:
        pixels = processor.image_processor(image.convert("RGB"), return_tensors="pt")
        size = image.size[::-1]
    output = model(**pixels, **processor.tokenizer([prompt], return_tensors="pt"))
    sam3 = "semantic_seg" in output
    logits = output.semantic_seg if sam3 else output.logits.reshape(1, 1, side, side)
    logits = functional.interpolate(logits, size=(side, side), mode="bilinear")
    values = functional.interpolate(logits, size=size, mode="bilinear")[0, 0].sigmoid().numpy()
    return values, output.presence_logits.sigmoid().item() if sam3 else None


def _check(entry, folder, file, prompt, threshold):
    values, presence = _probabilities(folder, file, prompt)
    assert entry["prompt"] == prompt
    assert entry["probabilities"].dtype == np.float32 and np.allclose(entry["probabilities"], values, atol=1e-5)
    mask = np.asarray(entry["mask"])
    assert entry["mask"].mode == "L" and entry["mask"].size == (40, 36) and set(np.unique(mask)) <= {0, 255}
    sure = np.abs(values - threshold) > 1e-5
    assert np.array_equal((mask == 255)[sure], (values > threshold)[sure])
    assert 0 < (mask == 255).mean() < 1, "the threshold of this test leaves something in and something out"
    assert entry["score"] == pytest.approx(
        values[mask == 255].mean() * (1 if presence is None else presence), abs=1e-5
    )
    assert ("presence" in entry) == (presence is not None)
    if presence is not None:
        assert entry["presence"] == pytest.approx(presence, abs=1e-5)


@pytest.mark.parametrize("kind", ["base", *KINDS])
def test_every_kind_of_model(models, images, kind):
    file = images / "test_0.png"
    folder = models / kind
    if kind == "decoder":
        segment = text_prompted_segmentation(folder)
    else:
        segment = pipeline(TASK, model=str(folder))
    threshold = float(np.median(_probabilities(folder, file, PROMPTS[0])[0]))
    (entry,) = segment(str(file), prompt=PROMPTS[0], threshold=threshold, probabilities=True)
    _check(entry, folder, file, PROMPTS[0], threshold)


def test_a_decoder_beside_its_models_config(models, images, tmp_path):
    """With config.json, by which transformers knows a model, it loads by transformers' own function, too."""
    folder = shutil.copytree(models / "decoder", tmp_path / "decoder")
    shutil.copy(models / "base" / "config.json", folder)
    image = images / "test_0.png"
    answers = [
        make(image, prompt="disc") for make in (pipeline(TASK, model=folder), text_prompted_segmentation(folder))
    ]
    assert answers[0][0]["score"] == answers[1][0]["score"] != 0


def test_sam3(sam3, images):
    file = images / "test_1.png"
    threshold = float(np.median(_probabilities(sam3, file, PROMPTS[1])[0]))
    segment = pipeline(TASK, model=str(sam3), threshold=threshold)
    for entry, prompt in zip(segment(file, prompts=PROMPTS, probabilities=True), PROMPTS, strict=True):
        _check(entry, sam3, file, prompt, threshold)


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_sam3_is_built_for_the_image_size_that_is_asked_for(sam3, images, kind):
    """By transformers' own function and by ours."""
    folder, file = sam3.parent / kind, images / "test_0.png"
    expected, _ = _probabilities(folder, file, "disc", 96)
    for make in (partial(pipeline, TASK), text_prompted_segmentation):
        (entry,) = make(model=str(folder), image_size=96)(file, prompt="disc", probabilities=True)
        assert np.allclose(entry["probabilities"], expected, atol=1e-5)


def test_sam3_by_its_name_on_the_hub_is_built_for_that_size_too(sam3, images, monkeypatch):
    base, loading = str(sam3.parent / "base"), sys.modules[entry_of.__module__]
    monkeypatch.setattr(loading, "find_adapter_config_file", lambda name: None)
    monkeypatch.setattr(loading, "load_base", lambda name, side=None: load_base(base, side))
    expected, _ = _probabilities(base, images / "test_0.png", "disc", 96)
    segment = text_prompted_segmentation("me/sam3", image_size=96)
    (entry,) = segment(images / "test_0.png", prompt="disc", probabilities=True)
    assert np.allclose(entry["probabilities"], expected, atol=1e-5)


def test_settings_of_the_pipeline_hold_for_every_call(models, images, monkeypatch):
    sizes, forward = [], CLIPSegForImageSegmentation.forward

    def noted(self, **inputs):
        sizes.append(len(inputs["pixel_values"]))
        return forward(self, **inputs)

    monkeypatch.setattr(CLIPSegForImageSegmentation, "forward", noted)
    model, processor = load_finetuned(models / "full")
    segment = pipeline(TASK, model=model.train(), processor=processor, threshold=0, batch_size=3, probabilities=True)
    assert not model.training
    files = [images / "test_0.png", images / "test_1.png"]
    for threshold, full in ((None, True), (1, False)):
        for entries in segment(files, prompts=PROMPTS, threshold=threshold):
            assert all(np.asarray(entry["mask"]).all() == full and "probabilities" in entry for entry in entries)
    segment(files, prompts=PROMPTS, batch_size=2)
    assert sizes == [3, 1] * 2 + [2, 2]
    assert text_prompted_segmentation(models / "full", device="meta").device.type == "meta"


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_change_nothing_and_embed_once(segment, images, monkeypatch, size):
    """Three images and two prompts: by the rows that reach the layers of the encoders."""
    rows = Counter()
    layer_forward = CLIPSegEncoderLayer.forward

    def noted(self, hidden_states, *args, **inputs):
        rows[hidden_states.shape[-1]] += len(hidden_states)
        return layer_forward(self, hidden_states, *args, **inputs)

    files = [images / "test_0.png", images / "test_1.png", images / "test_0.png"]
    one_by_one = [[segment(file, prompt=prompt)[0]["score"] for prompt in PROMPTS] for file in files]
    monkeypatch.setattr(CLIPSegEncoderLayer, "forward", noted)
    together = segment(files, prompts=PROMPTS, batch_size=size)
    # Four layers an encoder, of 16 features for the prompts and 24 for the images.
    assert rows == {16: 4 * 2, 24: 4 * 3}
    assert [[entry["prompt"] for entry in entries] for entries in together] == [PROMPTS] * 3
    assert np.allclose([[entry["score"] for entry in entries] for entries in together], one_by_one, atol=1e-5)


def _open(file, mode="RGB"):
    with Image.open(file) as image:
        return image.convert(mode)


def _with_transparent_colour(file):
    picture = _open(file, "P")
    picture.info["transparency"] = bytes([0, 128])
    return picture


FORMS = {
    "name": str,
    "path": Path,
    "PIL": _open,
    "palette": lambda file: _open(file, "P"),
    "transparent": lambda file: _open(file, "RGBA"),
    "transparent palette": lambda file: _with_transparent_colour(file),
    "array": lambda file: np.asarray(_open(file)),
    "grey array": lambda file: np.asarray(_open(file, "L")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_images(segment, images, form):
    image = form(images / "test_0.png")
    (entry,) = segment(image, prompt="disc", threshold=0)
    assert entry["mask"].size == (40, 36) and 0 < entry["score"] < 1
    ((again,),) = segment([image], prompts=["disc"], threshold=0)
    assert again["score"] == entry["score"]


def test_an_address_on_the_web(segment, images, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = partial(SimpleHTTPRequestHandler, directory=images)
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server, ThreadPoolExecutor() as threads:
        threads.submit(server.serve_forever)
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            ((found,),) = segment([f"{address}/test_0.png"], prompt="disc", threshold=0)
            for name, problem in {"gone.png": "gone.png cannot be fetched: .*404", "": "is not an image"}.items():
                with pytest.raises(InputError, match=problem):
                    segment(f"{address}/{name}", prompt="disc")
        finally:
            server.shutdown()
    assert found == segment(images / "test_0.png", prompt="disc", threshold=0)[0]
    with pytest.raises(InputError, match="test_0.png cannot be fetched"):
        segment(f"{address}/test_0.png", prompt="disc")


def test_no_more_is_fetched_than_an_image_has(monkeypatch):
    monkeypatch.setattr(image_inputs, "FETCH_BYTES", 2**20)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(bytes(2**20 + 1)))
    with pytest.raises(InputError, match="huge.png is larger than 1 MiB"):
        image_inputs.ImageInput(0, "https://host/huge.png").read()


def test_answers_before_any_threshold(segment, images):
    asked = list(segment.ask([images / "test_0.png"], PROMPTS))
    for threshold in (0.3, 0.6):
        answers = [entry_of(answer, PROMPTS[answer.prompt], threshold) for answer in asked]
        assert answers == segment(images / "test_0.png", prompt=PROMPTS, threshold=threshold)


def test_an_image_on_its_side_is_turned_upright(segment, images):
    image = _open(images / "test_0.png")
    image.getexif()[0x0112] = 6
    assert segment(image, prompt="disc")[0]["mask"].size == (36, 40)


def test_no_images_no_answers(segment):
    assert segment([], prompt="disc") == []


def test_an_empty_mask_scores_nothing(segment, images):
    (entry,) = segment(images / "test_0.png", prompt="disc", threshold=1)
    assert entry["score"] == 0 and not np.asarray(entry["mask"]).any()


def test_a_loaded_model_and_its_processor(models, images, segment):
    expected = segment(images / "test_0.png", prompt="disc")[0]["score"]
    model, processor = load_finetuned(models / "dense")
    size = processor.image_processor.size
    for parts in (
        {"processor": processor},
        {"processor": tiny_processor()},
        {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor},
    ):
        found = pipeline(TASK, model=model, device="cpu", **parts)(images / "test_0.png", prompt="disc")
        assert found[0]["score"] == pytest.approx(expected, abs=1e-6)
    other = text_prompted_segmentation(model, processor, image_size=64)(images / "test_0.png", prompt="disc")
    assert other[0]["score"] != pytest.approx(expected, abs=1e-6)
    assert processor.image_processor.size == size, "the caller's processor stays as it was"


def test_a_base_that_moved(models, base, images, segment, tmp_path):
    adapter = shutil.copytree(models / "dense", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))
    found = text_prompted_segmentation(adapter, base=str(base))(images / "test_0.png", prompt="disc")
    assert found[0]["score"] == segment(images / "test_0.png", prompt="disc")[0]["score"]


def test_half_precision(models, images, segment):
    half = pipeline(TASK, model=str(models / "dense"), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    found, expected = (each(images / "test_0.png", prompt="disc", threshold=0)[0]["score"] for each in (half, segment))
    assert found == pytest.approx(expected, abs=0.05)


def test_an_address_that_does_not_answer_ends_the_wait(segment, monkeypatch):
    monkeypatch.setattr(image_inputs, "FETCH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/scan.png"
        with pytest.raises(InputError, match=f"{address} cannot be fetched: timed out"):
            segment(address, prompt="disc")


def test_a_long_prompt_is_cut_with_a_warning(segment, images):
    with pytest.warns(UserWarning, match="only the first 24 tokens of the prompt 'aaa"):
        segment(images / "test_0.png", prompt="a" * 40)


def _truncated():
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(whole, "BMP")
    return Image.open(io.BytesIO(whole.getvalue()[:-600]))


CALL_PROBLEMS = {
    "no prompt": ({}, "give what to segment as prompt= or as prompts="),
    "both": ({"prompt": "disc", "prompts": ["disc"]}, "in one of the two"),
    "empty prompt": ({"prompt": " "}, "the prompt ' ' is empty"),
    "no prompts": ({"prompts": []}, "the prompts [] are neither"),
    "number": ({"prompt": 3}, "the prompts 3 are neither"),
    "numbers": ({"prompts": [3]}, "the prompt 3 is empty or no text"),
    "threshold": ({"prompt": "disc", "threshold": 2}, "threshold 2 must be a number between 0 and 1"),
    "threshold of no number": ({"prompt": "disc", "threshold": "0.5"}, "threshold '0.5' must be a number"),
    "threshold of a flag": ({"prompt": "disc", "threshold": True}, "threshold True must be a number"),
    "batch": ({"prompt": "disc", "batch_size": -1}, "batch_size -1 must be a whole number above 0"),
    "no batch": ({"prompt": "disc", "batch_size": 0}, "batch_size 0 must be a whole number above 0"),
    "missing": ({"images": "no.png", "prompt": "disc"}, "no.png does not exist"),
    "deep": ({"images": Image.new("I;16", (4, 4)), "prompt": "disc"}, "image 0 has more than 8 bits a channel"),
    "floats": ({"images": np.zeros((4, 4)), "prompt": "disc"}, "image 0 is a float64 array of shape (4, 4)"),
    "flat": ({"images": np.zeros(4, np.uint8), "prompt": "disc"}, "image 0 is a uint8 array of shape (4,)"),
    "no pixel": ({"images": np.zeros((0, 4, 3), np.uint8), "prompt": "disc"}, "uint8 array of shape (0, 4, 3)"),
    "channels": ({"images": np.zeros((4, 4, 2), np.uint8), "prompt": "disc"}, "uint8 array of shape (4, 4, 2)"),
    "truncated": (
        {"images": _truncated(), "prompt": "disc"},
        "image 0 cannot be read as an image: image file is trunc",
    ),
    "kind": ({"images": [3], "prompt": "disc"}, "image 0 is a int; give a PIL image"),
}


@pytest.mark.parametrize("inputs, problem", CALL_PROBLEMS.values(), ids=CALL_PROBLEMS)
def test_calls_that_cannot_serve(segment, inputs, problem):
    with pytest.raises(InputError) as error:
        segment(**{"images": Image.new("RGB", (4, 4)), **inputs})
    assert problem in str(error.value)


def test_a_volume_is_refused(segment, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)), tmp_path / "scan.nii")
    with pytest.raises(InputError, match="scan.nii holds 3 slices"):
        segment(tmp_path / "scan.nii", prompt="disc")


MODEL_PROBLEMS = {
    "nowhere": (lambda models: text_prompted_segmentation("/no/where"), "model '/no/where' does not exist"),
    "no model": (lambda models: text_prompted_segmentation(models), "holds no fine-tuned model"),
    "no processor": (lambda models: text_prompted_segmentation(load_base(str(models / "base"))[0]), "its processor"),
    "base of a model": (
        lambda models: text_prompted_segmentation(*load_base(str(models / "base")), base="b"),
        "base='b' is for a model that is given by its name",
    ),
    "size": (
        lambda models: pipeline(TASK, model=str(models / "dense"), image_size=30),
        "multiple of the model's patch",
    ),
    "threshold": (lambda models: pipeline(TASK, model=str(models / "dense"), threshold=-1), "threshold -1 must be"),
    "no segmenter": (
        lambda models: text_prompted_segmentation(torch.nn.Linear(1, 1), tiny_processor()),
        "no text-prom",
    ),
    "revision": (
        lambda models: pipeline(TASK, model=str(models / "dense"), revision="v1"),
        "revision='v1' is not for",
    ),
}


@pytest.mark.parametrize("make, problem", MODEL_PROBLEMS.values(), ids=MODEL_PROBLEMS)
def test_models_that_cannot_serve(models, make, problem):
    with pytest.raises(InputError) as error:
        make(models)
    assert problem in str(error.value)


def test_a_broken_adapter_is_told_and_its_base_not_used_instead(models, tmp_path):
    adapter = shutil.copytree(models / "dense", tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="the fine-tuned model .* cannot be loaded"):
        pipeline(TASK, model=str(adapter))


def test_the_import_registers_it_and_brings_no_pictures():
    code = (
        "import peft_vlsm, sys; from transformers.pipelines import PIPELINE_REGISTRY as registry; "
        f"assert '{TASK}' in registry.get_supported_tasks(); "
        "print([name for name in ('matplotlib', 'datasets', 'nibabel', 'pydicom', 'gradio') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
