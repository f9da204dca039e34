"""Compares fine-tuned models on data sets, at the images' own size: a matrix of adapters by data sets.

    python examples/evaluate.py --adapter OUT --data_dir DIR --output RESULTS
    python examples/evaluate.py --adapter A --adapter B --data_dir D --data_dir E --output RESULTS
    python examples/evaluate.py --adapter OUT --test_annotations JSON --image_root DIR --output RESULTS
    torchrun --nproc_per_node 2 examples/evaluate.py ...

An adapter is what finetune.py left, whatever its --method; a folder with a whole model, such as the frozen base, may
stand beside the others. Data sets are named as in finetune.py, here also several beside one another; the flags that
say how they are read hold for all of them. Every image is asked for with each of its prompts. Empty masks count as
metrics.py says.
RESULTS appears when everything in it is done, and holds:

    matrix.csv, matrix.png        a row an adapter and data set: mean Dice, IoU, precision, recall and HD95 (pixels),
                                  standard deviations, and 95 % intervals of the mean from a bootstrap over images
    per_prompt.csv, per_prompt.png  the same for each prompt by itself
    per_image.csv                 a row an image and prompt
    results.json                  all of these tables, and the settings
    cases/*.png                   the worst and the best cases of each adapter on each data set
"""

import os
import re
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.evaluation.comparison import Comparison, Result, distinct_names, write_tables
from peft_vlsm.segmentation.evaluation.scoring import Case, CaseDataset, extreme_samples, list_cases, score_cases
from peft_vlsm.segmentation.models.finetuned import kind_of, load_finetuned
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.output_folder import write_beside
from peft_vlsm.segmentation.pictures import contact_sheet, heat_map
from peft_vlsm.segmentation.prediction.predictor import check_adapter_name
from peft_vlsm.segmentation.prompts.choice import RANDOM, check_prompt_choice
from peft_vlsm.segmentation.sources.arguments import DataArguments, SourceArguments, each_source
from peft_vlsm.segmentation.sources.open import load_rows
from peft_vlsm.segmentation.sources.rows import check_rows
from peft_vlsm.segmentation.training.processes import end_processes

REPEATABLE = ("--adapter", "--data_dir", "--dataset_name", "--prompt")
SPLIT_PLACES = ("data_dir", "annotations")
LONGEST_NAME = 60  # Characters, of which file systems take 255 bytes.


@dataclass
class Arguments(SourceArguments):
    adapter: list[str] = field(
        kw_only=True,
        metadata={"help": "Output folder of finetune.py, an adapter's name on the Hub, or a whole model's folder."},
    )
    output: str = field(kw_only=True, metadata={"help": "Folder for the results; must be new or empty."})
    data_dir: list[str] | None = option(None, "Folder of data in any form that finetune.py takes; one or several.")
    dataset_name: list[str] | None = option(None, "Data set on the Hub, or a folder of its kind; one or several.")
    split: Literal["train", "val", "test"] = option("test", "What to evaluate on.")
    prompt: list[str] | None = option(
        None,
        "Which prompts to ask with, such as p1 p6; or random: the one with the highest number, with which finetune.py "
        "evaluates; all but p0 if not given.",
    )
    model_name_or_path: str | None = option(None, "The adapters' base model, where it is not what they name.")
    image_size: int | None = option(None, "Side of the square images in pixels; the one of training if not given.")
    batch_size: int = option(32, "Pairs of image and prompt a batch and process.")
    threshold: float = option(0.5, "A pixel belongs to a mask where its probability is above this.")
    bootstrap_samples: int = option(1000, "How often the bootstrap draws the images.")
    seed: int = option(42, "Of the bootstrap, and of the phrases that --negatives draws.")

    def __post_init__(self):
        for name in ("batch_size", "image_size", "bootstrap_samples"):
            self._check(name, getattr(self, name) is None or getattr(self, name) > 0, "must be above 0")
        self._check("threshold", 0 <= self.threshold <= 1, "must lie between 0 and 1")
        self._check("seed", self.seed >= 0, "must not be negative")
        keys = self.prompt or []
        for key in keys:
            check_prompt_choice(key)
            if keys.count(key) > 1:
                raise InputError(f"--prompt {key} is given twice; leave one out")
        if RANDOM in keys and len(keys) > 1:
            raise InputError(f"--prompt {RANDOM} is one of a row's prompts; leave the others out, or it")
        free = not os.path.exists(self.output) or (os.path.isdir(self.output) and not os.listdir(self.output))
        self._check("output", free, "exists already and is not overwritten; name a new folder")

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")


def join_repeated(argv: list[str]) -> list[str]:
    """`--adapter A --adapter B` as `--adapter A B`, of which the parser would else keep B alone."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    taking = None
    for argument in argv:
        name, assigned, value = argument.partition("=")
        flag = f"--{name[2:].replace('-', '_')}" if argument.startswith("--") else None
        if flag is not None:
            taking = flag if flag in REPEATABLE and not assigned else None
        if flag in REPEATABLE:
            values.setdefault(flag, []).extend([value] if assigned else [])
        elif flag is None and taking is not None:
            values[taking].append(argument)
        else:
            others.append(argument)
    return others + [part for name, given in values.items() for part in (name, *given)]


def find_data(args: Arguments) -> dict[str, DataArguments]:
    """The data sets by their names, each with the flags that it is read by."""
    prompt = args.prompt[0] if args.prompt else RANDOM
    sources = each_source(args, args.data_dir or [], args.dataset_name or [], prompt)
    return dict(zip(distinct_names(place_of(source, args.split) for source in sources), sources, strict=True))


def place_of(source: DataArguments, split: str) -> str:
    """What the user named the data set by. Where that has no such split, [`load_rows`] says so."""
    places = (source.data_dir, source.dataset_name, *(source.of_split(flag, split) for flag in SPLIT_PLACES))
    return next((place for place in places if place is not None), split)


def read_cases(args: Arguments, source: DataArguments) -> list[Case]:
    """Every image with its prompts, from files that open as far as their headers tell."""
    rows = load_rows(source, args.split, args.seed)
    check_rows(rows)
    return list_cases(rows, args.prompt, args.override_prompt)


def load(args: Arguments, adapter: str) -> tuple[Any, Processor]:
    """The model in eval mode, and its processor, set to the size of images."""
    check_adapter_name(adapter)
    base = None if kind_of(adapter) == "full" else args.model_name_or_path
    model, processor = load_finetuned(adapter, base, args.image_size)
    fit_processor(processor, model.config, args.image_size)
    return model, processor


def evaluate_adapter(
    args: Arguments, loaded: tuple[Any, Processor], name: str, data: dict[str, list[Case]], accelerator: Accelerator
) -> tuple[list[Result], list[Image.Image]]:
    """One adapter on every data set: its scores, and on the main process pictures of its worst and best cases."""
    model, processor = loaded
    model.to(accelerator.device)
    results, sheets = [], []
    for data_name, cases in data.items():
        dataset = CaseDataset(cases, processor)
        title = f"{name} on {data_name}"
        try:
            scores = score_cases(model, dataset, accelerator, args.batch_size, args.threshold, title)
        except InputError as error:
            raise InputError(f"{title}: {error}") from error
        results.append(Result(name, data_name, cases, scores))
        if accelerator.is_main_process:
            samples = extreme_samples(model, dataset, scores["dice"], accelerator.device, args.threshold)
            sheets.append(contact_sheet(samples))
    return results, sheets


def sheet_name(number: int, result: Result) -> str:
    """A file's name that no two results share, since it begins with the result's number."""
    return re.sub(r"[^\w.-]+", "-", f"{number}-{result.adapter}-on-{result.data}")[:LONGEST_NAME] + ".png"


def write_results(
    folder: Path, args: Arguments, results: list[Result], sheets: list[Image.Image], comparison: Comparison
) -> None:
    write_tables(folder, asdict(args), results, comparison)
    title = f"Mean Dice, {args.split}"
    heat_map(*comparison.matrix_fields(), title).save(folder / "matrix.png")
    heat_map(*comparison.prompt_fields(), f"{title}, by prompt").save(folder / "per_prompt.png")
    (folder / "cases").mkdir()
    for number, (result, sheet) in enumerate(zip(results, sheets, strict=True), 1):
        sheet.save(folder / "cases" / sheet_name(number, result))


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, join_repeated(sys.argv[1:]), description=__doc__)
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()

    # Everything that can be wrong with adapters and data shows here, before hours of work.
    adapters = dict(zip(distinct_names(args.adapter), args.adapter, strict=True))
    sources = find_data(args)
    if args.model_name_or_path is not None and all(kind_of(adapter) == "full" for adapter in args.adapter):
        raise InputError(
            f"--model_name_or_path {args.model_name_or_path} does nothing: no --adapter needs a base model"
        )
    data = {name: read_cases(args, source) for name, source in sources.items()}
    first, *others = args.adapter
    for adapter in others:
        load(args, adapter)
    # Stays loaded; the others are loaded again, since one model at a time is what memory must hold.
    ready = [load(args, first)]

    accelerator = Accelerator()
    results, sheets = [], []
    with write_beside(Path(args.output)) if accelerator.is_main_process else nullcontext() as folder:
        for name, adapter in adapters.items():
            loaded = ready.pop() if ready else load(args, adapter)
            more_results, more_sheets = evaluate_adapter(args, loaded, name, data, accelerator)
            del loaded
            results += more_results
            sheets += more_sheets
        if folder is not None:
            comparison = Comparison.of(results, args.bootstrap_samples, args.seed)
            write_results(folder, args, results, sheets, comparison)
            print(comparison.text())
    accelerator.print(f"{sum(len(result.cases) for result in results)} masks scored; results in {args.output}")
    end_processes(accelerator)


if __name__ == "__main__":
    main()
