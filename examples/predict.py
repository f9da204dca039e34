"""Segments images by text prompts with a fine-tuned model, and shows the masks.

    python examples/predict.py --adapter OUT --image FILE_OR_FOLDER --prompt "grey matter" --output DIR
    python examples/predict.py --adapter OUT --image FOLDER --prompt "grey matter" "white matter" --output DIR
    python examples/predict.py --adapter OUT --csv TABLE.csv --output DIR
    python examples/predict.py --adapter OUT --data_dir DATA --split test --output DIR

OUT is what finetune.py left, whatever its --method. A folder's own images are taken, sub-folders are not. TABLE.csv
has the columns image (relative to its folder) and prompt, a row a mask. DICOM (.dcm, a frame an image) and NIfTI
(.nii, .nii.gz, an axial slice an image) need pip install "peft-vlsm[medical]". A data set is named by the flags of
finetune.py (--data_dir, --dataset_name, --test_annotations, ...): its images are asked for what finetune.py evaluates
with, or by --prompt for other prompts of the rows (p1 p2) or for texts of yours. DIR appears when everything in it is
done, and holds, at each image's own size (upright, where a camera noted how it was held):

    masks/PROMPT/IMAGE.png            255 where the probability is above --threshold, else 0
    overlays/IMAGE.png                the image under its masks, each prompt in its colour
    label_maps/IMAGE.png              several prompts: the number of the most probable one above --threshold, else 0
    probabilities/PROMPT/IMAGE.npy    with --save_probabilities: float32, 0 to 1, for numpy.load
    volumes/PROMPT/FILE.nii.gz        of a NIfTI file: the masks of its slices, 0 and 1, with its shape and affine
    labels.json                       the prompts' numbers
    results.csv                       a row a mask: files, colour, share of the image, mean probability in the mask,
                                      and for SAM3 the probability that the image has what the prompt names
    samples.png                       of a data set, where a prompt is a row's: some predictions beside true masks
"""

import os
import re
import sys
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub.utils import logging as hub_logging
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.data.row_images import RowImage, images_of, joined_mask
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.evaluation.metrics import mask_overlap, overlap_scores
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.output_folder import write_beside
from peft_vlsm.segmentation.pictures import Sample, contact_sheet
from peft_vlsm.segmentation.prediction.predictor import (
    Prediction,
    Query,
    check_prompts,
    load_predictor,
    long_prompts,
    predict,
)
from peft_vlsm.segmentation.prediction.results_folder import (
    MAXIMUM_PROMPTS,
    PROMPTS_OF_8_BITS,
    Place,
    PredictionFolder,
    find_images,
)
from peft_vlsm.segmentation.prompts.choice import RANDOM, check_prompt_choice, choose_prompt
from peft_vlsm.segmentation.prompts.table import check_prompt_text, read_prompt_table
from peft_vlsm.segmentation.sources.arguments import DataArguments, PlaceArguments, SourceArguments
from peft_vlsm.segmentation.sources.open import load_rows
from peft_vlsm.segmentation.sources.rows import Row
from peft_vlsm.segmentation.training.samples import SAMPLES
from peft_vlsm.segmentation.volumes.slices import read_slice, slices_of

# A check of few images needs no bar of its own.
SECONDS_BEFORE_BAR = 2.0
LONG_PROMPTS_SHOWN = 5


@dataclass
class Arguments(SourceArguments, PlaceArguments):
    adapter: str = field(
        kw_only=True, metadata={"help": "Output folder of finetune.py, or an adapter's name on the Hub."}
    )
    output: str = field(kw_only=True, metadata={"help": "Folder for the results; must be new or empty."})
    image: str | None = option(None, "An image, or a folder of images (its sub-folders are not entered).")
    prompt: list[str] | None = option(
        None,
        "What to segment: one prompt or several, each in quotes. Of a data set also random (what finetune.py "
        "evaluates with, if not given) or p0 to p9: the rows' own prompts.",
    )
    csv: str | None = option(None, "Instead of --image and --prompt: a table with the columns image and prompt.")
    split: Literal["train", "val", "test"] = option("test", "Which rows of a data set.")
    seed: int = option(42, "Of the phrases that --negatives draws.")
    model_name_or_path: str | None = option(None, "The base model, where it is not what the adapter names.")
    image_size: int | None = option(None, "Side of the square images in pixels; the one of training if not given.")
    batch_size: int = option(16, "Pairs of image and prompt a batch.")
    threshold: float = option(0.5, "A pixel belongs to a mask where its probability is above this.")
    save_probabilities: bool = option(False, "Write the probabilities as float32 .npy files, too.")

    def __post_init__(self):
        self._check("batch_size", self.batch_size > 0, "must be above 0")
        self._check("image_size", self.image_size is None or self.image_size > 0, "must be above 0")
        self._check("threshold", 0 <= self.threshold <= 1, "must lie between 0 and 1")
        self._check_sources()
        free = not os.path.exists(self.output) or (os.path.isdir(self.output) and not os.listdir(self.output))
        self._check("output", free, "exists already and is not overwritten; name a new folder")

    def rows_prompts(self) -> list[str]:
        """Which of the rows' own prompts are wanted, as finetune.py names them; none where texts are given."""
        prompts = self.prompt or [RANDOM]
        own = [prompt for prompt in prompts if re.fullmatch(f"{RANDOM}|p[0-9]+", prompt)]
        if own and len(own) < len(prompts):
            raise InputError(f"--prompt {own[0]} is a prompt of the rows, others are texts; ask for them in two runs")
        for prompt in own:
            check_prompt_choice(prompt)
        return own

    def source(self) -> DataArguments:
        """The data set that the flags name."""
        flags = {each.name: getattr(self, each.name) for each in (*fields(PlaceArguments), *fields(SourceArguments))}
        own = self.rows_prompts()
        return DataArguments(**flags, max_train_samples=self.max_eval_samples, prompt=own[0] if own else RANDOM)

    def flags_of_data(self) -> list[str]:
        """Those of a data set's flags that are not left at their defaults."""
        names = {each.name for each in (*fields(PlaceArguments), *fields(SourceArguments))} | {"split", "seed"}
        return [each.name for each in fields(self) if each.name in names and getattr(self, each.name) != each.default]

    def _check_sources(self):
        data = self.flags_of_data()
        given = [name for name in ("image", "prompt") if getattr(self, name) is not None] + data
        if self.csv is not None and given:
            raise InputError(f"--csv {self.csv} names images and prompts itself; leave out --{given[0]}")
        if self.image is not None and data:
            raise InputError(f"--{data[0]} is for data sets, --image {self.image} names no data set; leave one out")
        if self.csv is None and not data and len(given) < 2:
            raise InputError("give --image and --prompt, or --csv, or a data set (--data_dir); see predict.py --help")
        prompts = self.prompt or []
        if len(prompts) > PROMPTS_OF_8_BITS:
            raise InputError(f"--prompt: {len(prompts)} prompts; there may be {PROMPTS_OF_8_BITS} at most")
        for prompt in prompts:
            check_prompt_text(prompt, "--prompt")
        if data:
            if self.override_prompt is not None and self.prompt is not None:
                raise InputError(f"--override_prompt {self.override_prompt} replaces --prompt; leave one out")
            self.source()

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")


def find_images_and_prompts(args: Arguments) -> dict[Place, list[str]]:
    """Every image, with the prompts to ask for."""
    if args.csv is not None:
        asked, repeated = read_prompt_table(Path(args.csv))
        if repeated:
            print(f"passed over {repeated} rows of {args.csv} that repeat an earlier one")
    elif args.image is not None:
        files, passed_over = find_images(args.image)
        if passed_over:
            print(f"passed over {passed_over} entries of {args.image} that are not images by their suffix")
        asked = dict.fromkeys(files, args.prompt or [])
    else:
        images = images_of(load_rows(args.source(), args.split, args.seed))
        return {image: [text for row in image.rows for text in prompts_of(args, row)] for image in images}
    return {part: wanted for file, wanted in asked.items() for part in slices_of(file)}


def prompts_of(args: Arguments, row: Row) -> list[str]:
    """What a row's image is asked for."""
    if args.override_prompt is not None:
        return [args.override_prompt]
    own = args.rows_prompts()
    return [choose_prompt(row, choice, seed=None, epoch=0) for choice in own] if own else args.prompt or []


def shows(args: Arguments, row: Row, prompt: str) -> bool:
    """Whether a row's mask is the true one for a prompt: the user's own texts are so where the row has them, too."""
    own = args.override_prompt is not None or bool(args.rows_prompts())
    return prompt in (prompts_of(args, row) if own else [text for texts in row.prompts.values() for text in texts])


def number_prompts(asked: dict[Place, list[str]]) -> tuple[dict[Place, list[int]], list[str]]:
    """Every image with the places of its prompts; and all prompts."""
    prompts = list(dict.fromkeys(prompt for wanted in asked.values() for prompt in wanted))
    if len(prompts) > MAXIMUM_PROMPTS:
        raise InputError(f"there are {len(prompts)} different prompts; there may be {MAXIMUM_PROMPTS} at most")
    places = {prompt: place for place, prompt in enumerate(prompts)}
    return {image: sorted({places[prompt] for prompt in wanted}) for image, wanted in asked.items()}, prompts


def check_images(images: list[Place]) -> None:
    """Reads every image whole, so that a damaged one shows now and not after an hour's work."""
    for image in tqdm(images, desc="checking images", unit="image", delay=SECONDS_BEFORE_BAR, leave=False):
        try:
            image.check() if isinstance(image, RowImage) else read_slice(image)
        except InputError as error:
            raise InputError(f"{error}; mend or remove it") from error


def warn_of_long_prompts(args: Arguments, processor: Processor, prompts: list[str]) -> None:
    # Rows may say the same in two spellings; of what is typed, one is a slip.
    typed = args.csv is None and args.prompt is not None and (args.image is not None or not args.rows_prompts())
    too_long = check_prompts(processor, prompts) if typed else long_prompts(processor, prompts)
    for prompt in too_long[:LONG_PROMPTS_SHOWN]:
        limit = processor.tokenizer.model_max_length
        print(f"warning: only the first {limit} tokens of --prompt {prompt!r} count", file=sys.stderr)
    if len(too_long) > LONG_PROMPTS_SHOWN:
        print(f"warning: {len(too_long) - LONG_PROMPTS_SHOWN} more prompts are too long, too", file=sys.stderr)


def choose_samples(
    args: Arguments, asked: dict[Place, list[int]], prompts: list[str]
) -> dict[tuple[Place, int], list[Row]]:
    """Images and prompts to look at, spread over those that have a true mask; with the rows that show it."""
    known: dict[tuple[Place, int], list[Row]] = {}
    for image, places in asked.items():
        if isinstance(image, RowImage):
            for place in places:
                known[image, place] = [row for row in image.rows if shows(args, row, prompts[place])]
    pairs = [pair for pair, rows in known.items() if rows]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, SAMPLES).round().astype(int)) if pairs else []
    return {pairs[place]: known[pairs[place]] for place in chosen}


def draw_sample(prediction: Prediction, prompt: str, rows: list[Row], cut: float) -> Sample:
    predicted, true = prediction.logits > cut, joined_mask(rows)
    overlap = mask_overlap(predicted[None], torch.from_numpy(true)[None]).numpy()
    dice = overlap_scores(*overlap.T)["dice"].item()
    return Sample(prediction.image, prompt, true, predicted.numpy(), dice, prediction.source.name.name)


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__)
    # What torchrun and accelerate launch tell their processes.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("predict.py works in one process; start it with python")
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()

    # Everything that can be wrong with images, model and prompts shows here, before anything is written.
    asked, prompts = number_prompts(find_images_and_prompts(args))
    check_images(list(asked))
    print(f"loading {args.adapter}")
    model, processor = load_predictor(args.adapter, args.model_name_or_path, args.image_size)
    fit_processor(processor, model.config, args.image_size)
    warn_of_long_prompts(args, processor, prompts)
    shown, samples = choose_samples(args, asked, prompts), []

    model.to(Accelerator().device)
    queries = (
        Query(image, image.read if isinstance(image, RowImage) else partial(read_slice, image), wanted)
        for image, wanted in asked.items()
    )
    with write_beside(Path(args.output)) as folder:
        results = PredictionFolder(folder, asked, prompts, args.threshold, args.save_probabilities)
        predictions = predict(model, processor, queries, prompts, args.batch_size)
        for prediction in tqdm(predictions, total=sum(map(len, asked.values())), desc="predicting", unit="mask"):
            results.add(prediction)
            if rows := shown.get((prediction.source, prediction.prompt)):
                samples.append(draw_sample(prediction, prompts[prediction.prompt], rows, results.cut.item()))
        results.write_tables()
        if samples:
            contact_sheet(samples).save(folder / "samples.png")
    empty = sum(row.mean_probability is None for row in results.rows)
    print(f"{len(results.rows)} masks of {len(asked)} images, {empty} of them empty; results in {args.output}")


if __name__ == "__main__":
    main()
