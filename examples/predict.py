"""Segments images by text prompts with a fine-tuned model, and shows the masks.

    python examples/predict.py --adapter OUT --image FILE_OR_FOLDER --prompt "grey matter" --output DIR
    python examples/predict.py --adapter OUT --image FOLDER --prompt "grey matter" "white matter" --output DIR

OUT is what finetune.py left, whatever its --method. A folder's own images are taken, sub-folders are not. DIR appears
when everything in it is done, and holds, at each image's own size (upright, where a camera noted how it was held):

    masks/PROMPT/IMAGE.png            255 where the probability is above --threshold, else 0
    overlays/IMAGE.png                the image under its masks, each prompt in its colour
    label_maps/IMAGE.png              several prompts: the number of the most probable one above --threshold, else 0
    probabilities/PROMPT/IMAGE.npy    with --save_probabilities: float32, 0 to 1, for numpy.load
    labels.json                       the prompts' numbers
    results.csv                       a row a mask: files, colour, share of the image, mean probability in the mask
"""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub.utils import logging as hub_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.images import open_image
from peft_vlsm.segmentation.output_folder import write_beside
from peft_vlsm.segmentation.prediction import check_prompts, embed_prompts, load_predictor, predict
from peft_vlsm.segmentation.prediction_folder import MAXIMUM_PROMPTS, PredictionFolder, find_images
from peft_vlsm.segmentation.transforms import fit_processor

# A check of few images needs no bar of its own.
SECONDS_BEFORE_BAR = 2.0


@dataclass
class Arguments:
    adapter: str = field(metadata={"help": "Output folder of finetune.py, or an adapter's name on the Hub."})
    image: str = field(metadata={"help": "An image, or a folder of images (its sub-folders are not entered)."})
    prompt: list[str] = field(metadata={"help": "What to segment: one prompt or several, each in quotes."})
    output: str = field(metadata={"help": "Folder for the results; must be new or empty."})
    model_name_or_path: str | None = option(None, "The base model, where it is not what the adapter names.")
    image_size: int | None = option(None, "Side of the square images in pixels; the one of training if not given.")
    batch_size: int = option(16, "Pairs of image and prompt a batch.")
    threshold: float = option(0.5, "A pixel belongs to a mask where its probability is above this.")
    save_probabilities: bool = option(False, "Write the probabilities as float32 .npy files, too.")

    def __post_init__(self):
        self._check("batch_size", self.batch_size > 0, "must be above 0")
        self._check("image_size", self.image_size is None or self.image_size > 0, "must be above 0")
        self._check("threshold", 0 <= self.threshold <= 1, "must lie between 0 and 1")
        if len(self.prompt) > MAXIMUM_PROMPTS:
            raise InputError(f"--prompt: {len(self.prompt)} prompts; a label map holds at most {MAXIMUM_PROMPTS}")
        for prompt in self.prompt:
            if not prompt.strip() or re.search("[\ud800-\udfff]", prompt):
                raise InputError(f"--prompt {prompt!r} is empty or no text; say what to segment")
        free = not os.path.exists(self.output) or (os.path.isdir(self.output) and not os.listdir(self.output))
        self._check("output", free, "exists already and is not overwritten; name a new folder")

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")


def check_images(files: list[Path]) -> None:
    """Reads every image whole, so that a damaged one shows now and not after an hour's work."""
    for file in tqdm(files, desc="checking images", unit="image", delay=SECONDS_BEFORE_BAR, leave=False):
        try:
            open_image(file)
        except InputError as error:
            raise InputError(f"{error} (--image); mend or remove it") from error


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__)
    # What torchrun and accelerate launch tell their processes.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("predict.py works in one process; start it with python")
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()

    # Everything that can be wrong with images, model and prompts shows here, before anything is written.
    files, passed_over = find_images(args.image)
    if passed_over:
        print(f"passed over {passed_over} entries of {args.image} that are not images by their suffix")
    check_images(files)
    print(f"loading {args.adapter}")
    model, processor = load_predictor(args.adapter, args.model_name_or_path)
    fit_processor(processor, model.config, args.image_size)
    for prompt in check_prompts(processor, args.prompt):
        limit = processor.tokenizer.model_max_length
        print(f"warning: only the first {limit} tokens of --prompt {prompt!r} count", file=sys.stderr)

    device = Accelerator().device
    embeddings = embed_prompts(model.to(device), processor, args.prompt, device)
    with write_beside(Path(args.output)) as folder:
        results = PredictionFolder(folder, files, args.prompt, args.threshold, args.save_probabilities)
        predictions = predict(model, processor, files, embeddings, args.batch_size)
        for prediction in tqdm(predictions, total=len(files) * len(args.prompt), desc="predicting", unit="mask"):
            results.add(prediction)
        results.write_tables()
    empty = sum(row.mean_probability is None for row in results.rows)
    print(f"{len(results.rows)} masks of {len(files)} images, {empty} of them empty; results in {args.output}")


if __name__ == "__main__":
    main()
