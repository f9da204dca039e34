"""A page in the browser: an image and a prompt in, the masks with the adapter off and on side by side out.

    python examples/app.py --adapter OUT
    python examples/app.py --adapter FOLDER_OF_SEVERAL --server_port 7860

OUT is what finetune.py left, whatever its --method, or an adapter's name on the Hub. A folder of several such folders
gives a list to choose from; one at a time is kept in memory. A new threshold redraws the masks without running the
model again. The page is served to this machine alone unless --server_name says otherwise, nothing is shared or
reported to Gradio, and all works without the internet. Needs pip install "peft-vlsm[app]". Stop it with Ctrl-C.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.data.images import open_image
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.models.finetuned import kind_of
from peft_vlsm.segmentation.pictures import overlay
from peft_vlsm.segmentation.prediction.pipeline import (
    TextPromptedSegmentationPipeline,
    entry_of,
    text_prompted_segmentation,
)
from peft_vlsm.segmentation.prediction.predictor import Prediction

PORTS = range(1, 65536)
KEPT_SECONDS = 3600
NO_BASE = "A whole model: there is no adapter to switch off."


@dataclass
class Arguments:
    adapter: str = field(metadata={"help": "Output folder of finetune.py, a folder of several, or a name on the Hub."})
    model_name_or_path: str | None = option(None, "The base model, where it is not what the adapter names.")
    image_size: int | None = option(None, "Side of the square images in pixels; the one of training if not given.")
    server_name: str = option("127.0.0.1", "The address to serve on; 0.0.0.0 lets other machines in.")
    server_port: int = option(7860, "The port to serve on.")

    def __post_init__(self):
        if self.server_port not in PORTS:
            raise InputError(f"--server_port {self.server_port} must lie between 1 and {PORTS[-1]}")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image_size {self.image_size} must be above 0")


def find_adapters(path: str) -> dict[str, str]:
    """The output folders that a path names, by what the page calls them."""
    folder = Path(path)
    if not folder.is_dir() or kind_of(folder):
        return {folder.name or path: path}
    found = {entry.name: str(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and kind_of(entry)}
    if not found:
        raise InputError(f"--adapter {path} is no output folder of finetune.py, and holds none")
    return found


@dataclass(frozen=True)
class Model:
    """A fine-tuned model, and how to ask the one that it was made from: None where that is not known."""

    tuned: TextPromptedSegmentationPipeline
    base: TextPromptedSegmentationPipeline | None
    switch: Callable[[], Any]


def load_model(path: str, base: str | None, image_size: int | None) -> Model:
    """An adapter is switched off in place; of a fine-tuned decoder the base model is loaded, too."""
    tuned = text_prompted_segmentation(path, base=base, image_size=image_size)
    kind = kind_of(path)
    if kind == "decoder":
        return Model(tuned, text_prompted_segmentation(tuned.model.name_or_path, image_size=image_size), nullcontext)
    if kind == "full":
        return Model(tuned, None, nullcontext)
    return Model(tuned, tuned, tuned.model.disable_adapter)


def look(pipeline: TextPromptedSegmentationPipeline, image: Image.Image, prompt: str) -> Prediction:
    """Runs the model: its answer before any threshold."""
    (answer,) = pipeline.ask([image], [prompt])
    return answer


def draw(answer: Prediction, prompt: str, threshold: float) -> tuple[Image.Image, Image.Image, str]:
    """The overlay, the mask, and a line about it; runs no model."""
    result = entry_of(answer, prompt, threshold)
    mask = np.asarray(result["mask"]) > 0
    line = f"{mask.mean():.1%} of the image, score {result['score']:.3f}"
    if "presence" in result:
        line += f", present with probability {result['presence']:.3f}"
    return overlay(answer.image, mask), result["mask"], line


@dataclass(frozen=True)
class Answers:
    """What the page shows, kept so that another threshold draws it anew; `plain` is None where there is no adapter."""

    prompt: str
    tuned: Prediction
    plain: Prediction | None
    threshold: float
    file: Path  # Of the mask to download.


def build_page(gradio: Any, adapters: dict[str, str], load: Callable[[str], Model], downloads: Path) -> Any:
    """The page of Gradio, which calls `segment` with what stands in its fields."""

    def segment(image: str | None, prompt: str, threshold: float, adapter: str) -> tuple[Any, ...]:
        if image is None:
            raise gradio.Error("Choose an image first.", print_exception=False)
        try:
            picture, model = open_image(image), load(adapters[adapter])
            tuned, plain = look(model.tuned, picture, prompt), None
            if model.base is not None:
                with model.switch():
                    plain = look(model.base, picture, prompt)
        except InputError as error:
            # Users know their file's name, and not where Gradio put it.
            raise gradio.Error(str(error).replace(image, Path(image).name), print_exception=False) from error
        return show(Answers(prompt, tuned, plain, threshold, Path(tempfile.mkdtemp(dir=downloads), "mask.png")))

    def show(answers: Answers) -> tuple[Any, ...]:
        tuned, mask, tuned_line = draw(answers.tuned, answers.prompt, answers.threshold)
        plain, plain_line = None, NO_BASE
        if answers.plain is not None:
            plain, _, plain_line = draw(answers.plain, answers.prompt, answers.threshold)
        mask.save(answers.file)
        download = gradio.DownloadButton(value=str(answers.file), interactive=True)
        return plain, plain_line, tuned, tuned_line, download, answers

    def redraw(answers: Answers | None, threshold: float) -> Any:
        if answers is None or answers.threshold == threshold:
            return gradio.skip()
        return show(replace(answers, threshold=threshold))

    # Images of patients stay for an hour at most: seconds between two looks, and the age of what goes.
    kept = {"analytics_enabled": False, "delete_cache": (600, KEPT_SECONDS)}
    with gradio.Blocks(title="Text-prompted segmentation", **kept) as page:
        gradio.Markdown("## Text-prompted segmentation: the adapter off and on")
        # Without Gradio's own third button, which shares a picture on the Hub.
        shown = {"height": 360, "interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
        with gradio.Row():
            with gradio.Column(scale=1):
                adapter = gradio.Dropdown(list(adapters), value=next(iter(adapters)), label="Adapter")
                image = gradio.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=300
                )
                prompt = gradio.Textbox(label="Prompt", placeholder="what to segment", elem_id="prompt")
                threshold = gradio.Slider(
                    0, 1, value=0.5, step=0.01, label="Threshold of the probability", elem_id="threshold"
                )
                button = gradio.Button("Segment", variant="primary", elem_id="segment")
            with gradio.Column(scale=1):
                plain = gradio.Image(label="Adapter off", elem_id="off", **shown)
                plain_line = gradio.Markdown()
            with gradio.Column(scale=1):
                tuned = gradio.Image(label="Adapter on", elem_id="on", **shown)
                tuned_line = gradio.Markdown()
                mask = gradio.DownloadButton("Download the mask", interactive=False, elem_id="mask")
        answers = gradio.State(time_to_live=KEPT_SECONDS)
        fields, results = [image, prompt, threshold, adapter], [plain, plain_line, tuned, tuned_line, mask, answers]
        # Drawn again after a run, during which the threshold may have moved, and whenever it moves.
        again = {"fn": redraw, "inputs": [answers, threshold], "outputs": results, "api_visibility": "private"}
        again |= {"show_progress": "hidden", "trigger_mode": "always_last"}
        button.click(segment, fields, results, api_name="segment").success(**again)
        prompt.submit(segment, fields, results, api_visibility="private").success(**again)
        threshold.change(**again)
    return page


def import_gradio() -> Any:
    """Gradio, told before its import to report nothing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
    try:
        import gradio
    except ImportError as error:
        raise InputError('app.py needs Gradio; pip install "peft-vlsm[app]"') from error
    return gradio


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__)
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    adapters = find_adapters(args.adapter)
    load = lru_cache(maxsize=1)(lambda path: load_model(path, args.model_name_or_path, args.image_size))
    # What cannot be loaded shows now, and not at the first click.
    load(next(iter(adapters.values())))
    gradio = import_gradio()
    with tempfile.TemporaryDirectory() as downloads:
        page = build_page(gradio, adapters, load, Path(downloads))
        # System fonts: the theme's own ones come from the internet.
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        place = {"server_name": args.server_name, "server_port": args.server_port, "share": False}
        try:
            # Gradio opens an upload before we do, and would keep to itself what is wrong with it.
            page.launch(**place, theme=theme, show_error=True)
        except OSError as error:
            raise InputError(f"--server_name {args.server_name} --server_port {args.server_port}: {error}") from error


if __name__ == "__main__":
    main()
