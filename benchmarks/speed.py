"""Measures what each fine-tuning method costs beside full fine-tuning: seconds a step, peak memory, sizes, prediction.

    python benchmarks/speed.py --output_dir DIR
    python benchmarks/speed.py --output_dir DIR --model sam3 --per_device_train_batch_size 1 --image_size 336
    python benchmarks/speed.py --output_dir DIR --model_name_or_path MODEL --methods dense lora full

The model has its full size and random weights, since speed does not hang on what they are. A step is finetune.py's:
forward, the loss, backward, gradients clipped, AdamW. Methods take turns (A, B, C, A, B, C, ...), each time in a new
process, so that what else the machine does falls on all of them; Ctrl-C reports the turns that are whole. It runs on a
GPU where accelerate finds one (ACCELERATE_USE_CPU=true keeps off it), else on the CPU, under Linux or macOS. DIR
appears when all is done and holds

    results.json    every figure and every ratio, the settings and the machine
    results.md      the tables: ratios to full fine-tuning, and to the base model in prediction
    speed.png       the ratios as bars
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cost.measure import FROZEN, Case, Measurement
from step_cost.models import read_config
from step_cost.process import measure_in_process
from step_cost.report import draw_ratios, summarise, write_tables
from step_cost.settings import Arguments
from tqdm.auto import tqdm

from peft_vlsm.segmentation.arguments import parse_arguments
from peft_vlsm.segmentation.errors import exit_on_input_error
from peft_vlsm.segmentation.output_folder import write_beside


def measure_in_turns(cases: list[Case], args: Arguments) -> dict[Case, list[Measurement]]:
    """
    Measures every case once a turn; shows how far it is.

    Ctrl-C ends it with the turns that are whole by then, and `args.repeats` says how many; before the first one is
    whole, it ends the script.
    """
    measurements: dict[Case, list[Measurement]] = {case: [] for case in cases}
    passes = args.repeats * sum(case.passes(args) for case in cases)
    with tqdm(total=passes, unit="pass") as bar:
        try:
            for turn in range(args.repeats):
                for case, found in measurements.items():
                    bar.set_description(f"turn {turn + 1}, {case.method}")
                    found.append(measure_in_process(case, args, bar.update))
        except KeyboardInterrupt:
            args.repeats = min(map(len, measurements.values()))
            if args.repeats == 0:
                raise
    return {case: found[: args.repeats] for case, found in measurements.items()}


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """As [`write_beside`], but a folder that is there already is replaced when the block ends without an error."""
    if not folder.exists():
        with write_beside(folder) as staging:
            yield staging
        return
    folder = folder.resolve()
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    with write_beside(new) as staging:
        yield staging
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__)
    _, _, args.image_size = read_config(args)
    cases = [Case(FROZEN), *(Case(method) for method in args.methods or [])]
    cases += [Case(method, gradient_checkpointing=True) for method in args.gradient_checkpointing or []]
    output = Path(args.output_dir)
    with replace_folder(output) as folder:
        results = summarise(measure_in_turns(cases, args), args)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (folder / "results.md").write_text(write_tables(results), encoding="utf-8")
        draw_ratios(results).savefig(folder / "speed.png", dpi=110)
    print(f"results in {output}")


if __name__ == "__main__":
    main()
