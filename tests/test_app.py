"""examples/app.py: the page in a headless Chromium, what it answers, which adapters it offers, and bad input."""

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, nullcontext
from importlib.util import find_spec

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from builders import EXAMPLES, failure_of, load_example, move_trainable_weights, write_dataset
from peft import get_peft_model
from PIL import Image

from peft_vlsm import DenseAdapterConfig, text_prompted_segmentation
from peft_vlsm.segmentation.models.finetuned import load_base, save_finetuned
from peft_vlsm.segmentation.pictures import overlay

# Not imported: Gradio and its client leave event loops open, and a test must not.
pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio")
CLIENT = """
import json, sys
from gradio_client import Client, handle_file
address, calls = sys.argv[1], json.loads(sys.argv[2])
client = Client(address, verbose=False)
for image, *rest in calls:
    try:
        print(json.dumps(client.predict(image and handle_file(image), *rest, api_name="/segment")))
    except Exception as error:
        print(json.dumps(str(error)))
"""
PROMPT = "red disc"
THRESHOLD = 0.45
SOURCE = "document.querySelector('#{} img').src"
# As the slider does when it is moved.
SET_THRESHOLD = f"""(() => {{
    const slider = document.querySelector('#threshold input[type=range]');
    slider.value = {THRESHOLD};
    slider.dispatchEvent(new Event('input', {{bubbles: true}}));
}})()"""
START_SECONDS = 90


@pytest.fixture(scope="module")
def app():
    return load_example("app")


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """A folder of three output folders: an adapter, a decoder and a whole model; and something else."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("adapter", "decoder", "full"):
        model, processor = load_base(str(base))
        if kind == "adapter":
            model = get_peft_model(model, DenseAdapterConfig(variant="VLC", adapter_dim=4, cond_adapter_dim=4))
        elif kind == "decoder":
            model.requires_grad_(False).decoder.requires_grad_(True)
        move_trainable_weights(model)
        save_finetuned(model, processor, folder / kind)
    (folder / "logs").mkdir()
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", {"test": 1}) / "images" / "test_0.png"


def _free_port():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    """The script as a process of its own, with all adapters; its address."""
    address = f"http://127.0.0.1:{(port := _free_port())}/"
    log = tmp_path_factory.mktemp("server") / "log.txt"
    temporary = tmp_path_factory.mktemp("gradio")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(temporary), "no_proxy": "127.0.0.1"}
    command = [sys.executable, EXAMPLES / "app.py", "--adapter", runs, "--server_port", port]
    with log.open("w") as opened:
        process = subprocess.Popen(list(map(str, command)), stdout=opened, stderr=opened, env=environment)
        try:
            _wait_for(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(address, process, log):
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)


def _fetch(address):
    with urllib.request.urlopen(address, timeout=10) as response, Image.open(io.BytesIO(response.read())) as picture:
        return np.asarray(picture.convert("RGB"))


async def _use_the_page(server, image, folder):
    """Uploads, types, clicks, waits for the overlays and downloads; returns the overlays' and all other addresses."""
    async with Browser(server, folder / "profile", folder / "downloads") as tab:
        await tab.wait_for("!!document.querySelector('input[type=file]') && !!document.querySelector('#segment')")
        await tab.upload("input[type=file]", image)
        await tab.wait_for("[...document.querySelectorAll('img')].some(image => image.src.includes('test_0'))")
        await tab.type("#prompt textarea", PROMPT)
        await tab.click("#segment")
        shown = "document.querySelector('#{} img')?.naturalWidth"
        for place in ("off", "on"):
            assert await tab.wait_for(shown.format(place)) == 40
        await tab.screenshot(folder / "page.png")
        await tab.click("#mask")
        await tab.wait_for_file(folder / "downloads" / "mask.png")
        sources = [await tab.evaluate(SOURCE.format(place)) for place in ("off", "on")]
        await tab.evaluate(SET_THRESHOLD)
        for place, before in zip(("off", "on"), sources, strict=True):
            await tab.wait_for(f"{SOURCE.format(place)} != {before!r}")
        await tab.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "again"))
        await tab.click("#mask")
        await tab.wait_for_file(folder / "again" / "mask.png")
        sources += [await tab.evaluate(SOURCE.format(place)) for place in ("off", "on")]
        others = "performance.getEntriesByType('resource').map(entry => entry.name)"
        return sources, await tab.evaluate(others)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page(server, runs, image, tmp_path):
    """The overlays are the model's own masks, with the adapter off and on, and nothing comes from elsewhere; another
    threshold draws them anew."""
    overlays, requests = asyncio.run(_use_the_page(server, image, tmp_path))
    segment = text_prompted_segmentation(runs / "adapter")
    masks = []
    for threshold in (0.5, THRESHOLD):
        for switch in (segment.model.disable_adapter, nullcontext):
            with switch():
                masks.append(np.asarray(segment(image, prompt=PROMPT, threshold=threshold)[0]["mask"]))
    plain, tuned, _, redrawn = masks
    assert (plain != tuned).mean() > 0.01, "the adapter of this test changes nothing"
    assert (redrawn != tuned).mean() > 0.01, "the threshold of this test changes nothing"
    with Image.open(image) as picture:
        expected = [np.asarray(overlay(picture, each > 0)) for each in masks]
    for address, picture in zip(overlays, expected, strict=True):
        assert np.array_equal(_fetch(address), picture)
    assert np.array_equal(_picture(tmp_path / "downloads" / "mask.png"), tuned)
    assert np.array_equal(_picture(tmp_path / "again" / "mask.png"), redrawn)
    assert requests and all(request.startswith((server, "data:", "blob:")) for request in requests)
    with Image.open(tmp_path / "page.png") as screenshot:
        assert screenshot.width > 1000
    if "APP_SCREENSHOT" in os.environ:
        shutil.copy(tmp_path / "page.png", os.environ["APP_SCREENSHOT"])


def _ask(server, *calls):
    """What the page's function answers to each call, or its error."""
    command = [sys.executable, "-c", CLIENT, server, json.dumps(calls)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_every_adapter_of_the_folder(server, runs, image):
    names = ("adapter", "decoder", "full")
    answers = _ask(server, *((str(image), PROMPT, 0.45, name) for name in names))
    base = text_prompted_segmentation(text_prompted_segmentation(runs / "decoder").model.name_or_path)
    (untuned,) = base(image, prompt=PROMPT, threshold=0.45)
    for name, (plain, plain_line, tuned, tuned_line, mask) in zip(names, answers, strict=True):
        (expected,) = text_prompted_segmentation(runs / name)(image, prompt=PROMPT, threshold=0.45)
        share = np.asarray(expected["mask"]).astype(bool).mean()
        assert tuned_line == f"{share:.1%} of the image, score {expected['score']:.3f}"
        assert np.array_equal(_picture(mask["value"]), np.asarray(expected["mask"]))
        if name == "full":
            assert plain is None and plain_line.startswith("A whole model")
        else:
            assert plain_line.endswith(f"score {untuned['score']:.3f}")
            assert _picture(plain).shape == _picture(tuned).shape == (36, 40, 3)


def _picture(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_what_is_missing_on_the_page_is_told(server, image):
    errors = _ask(server, (None, PROMPT, 0.5, "adapter"), (str(image), " ", 0.5, "adapter"))
    assert "Choose an image first" in errors[0] and "the prompt ' ' is empty" in errors[1]


def _png_bytes():
    content = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(content, "PNG")
    return content.getvalue()


BAD_IMAGES = {
    "deep": (lambda file: Image.new("I;16", (8, 8)).save(file), "deep.png has more than 8 bits a channel"),
    "broken": (lambda file: file.write_bytes(b"no image"), "cannot identify image file"),
    "cut": (lambda file: file.write_bytes(_png_bytes()[:-30]), "cut.png cannot be read as an image"),
    "animated": (
        lambda file: Image.new("RGB", (8, 8)).save(
            file, save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
        ),
        "animated.png holds several pages",
    ),
}


def test_images_that_cannot_serve_are_named_on_the_page(server, tmp_path):
    for name, (write, _) in BAD_IMAGES.items():
        write(tmp_path / f"{name}.png")
    errors = _ask(server, *((str(tmp_path / f"{name}.png"), PROMPT, 0.5, "adapter") for name in BAD_IMAGES))
    for error, (name, (_, problem)) in zip(errors, BAD_IMAGES.items(), strict=True):
        assert problem in error and (name == "broken" or "/" not in error)


def test_a_photograph_on_its_side_is_turned_upright(server, image, tmp_path):
    with Image.open(image) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(tmp_path / "turned.png", exif=exif)
    ((plain, _, tuned, *_),) = _ask(server, (str(tmp_path / "turned.png"), PROMPT, 0.5, "adapter"))
    assert _picture(plain).shape == _picture(tuned).shape == (40, 36, 3)


def test_adapters_that_a_path_names(app, runs):
    assert list(app.find_adapters(str(runs))) == ["adapter", "decoder", "full"]
    assert app.find_adapters(str(runs / "decoder")) == {"decoder": str(runs / "decoder")}
    assert app.find_adapters("owner/name") == {"name": "owner/name"}


PROBLEMS = {
    "no adapter": (lambda runs: ["--adapter", runs / "logs"], "is no output folder of finetune.py, and holds none"),
    "nowhere": (lambda runs: ["--adapter", "/no/where"], "model '/no/where' does not exist"),
    "port": (lambda runs: ["--adapter", runs, "--server_port", 70000], "--server_port 70000 must lie between"),
    "size": (lambda runs: ["--adapter", runs, "--image_size", 0], "--image_size 0 must be above 0"),
    "patch": (lambda runs: ["--adapter", runs, "--image_size", 30], "multiple of the model's patch size 8"),
    "base": (lambda runs: ["--adapter", runs, "--model_name_or_path", "/gone"], "the model /gone cannot be loaded"),
    "share": (lambda runs: ["--adapter", runs, "--share"], "unknown arguments: --share"),
}


@pytest.mark.parametrize("flags, problem", PROBLEMS.values(), ids=PROBLEMS)
def test_bad_flags(app, runs, capsys, flags, problem):
    assert problem in failure_of(capsys, app, *flags(runs))


def test_a_port_that_is_taken(runs, server):
    port = server.rstrip("/").rpartition(":")[2]
    command = [sys.executable, EXAMPLES / "app.py", "--adapter", runs / "adapter", "--server_port", port]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith(f"error: --server_name 127.0.0.1 --server_port {port}: ")


def test_gradio_that_is_not_installed(app, runs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "peft-vlsm[app]"' in failure_of(capsys, app, "--adapter", runs)
