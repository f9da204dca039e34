"""Fine-tunes the embedded model on brain MRI slices in five ways, and prints what each of them gives.

    python examples/demo.py --output_dir demo     (what `make demo` runs)

Writes demo/brain-mri (the data), demo/METHOD (each run's results), demo/table.md and demo/samples.png: the first
pictures of Dense VL. Training and evaluation take under ten minutes on two cores.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from peft_vlsm.segmentation.arguments import option, parse_arguments
from peft_vlsm.segmentation.data.annotations import read_annotations
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.evaluation.validation import evaluate
from peft_vlsm.segmentation.models.finetuned import load_base

EXAMPLES = Path(__file__).parent
# Each row of the table with its flags of finetune.py; the frozen model has none, since nothing of it trains. The
# learning rates suit runs of this length, by validation Dice.
METHODS = {
    "frozen": None,
    "decoder only": ["--method", "decoder", "--learning_rate", "2e-3"],
    "Shallow VL": ["--method", "shallow", "--variant", "VL", "--learning_rate", "1e-3"],
    "Dense VL": ["--method", "dense", "--variant", "VL", "--learning_rate", "5e-3"],
    "full fine-tuning": ["--method", "full", "--learning_rate", "1e-3"],
}
# The model saw 128 pixels in pretraining, too few for folds of grey matter.
IMAGE_SIZE = 192
# The paper's schedule waits for plateaus, of which so short a run has none.
SCHEDULE = {"per_device_train_batch_size": 8, "lr_scheduler_type": "cosine"}
WARMUP_SHARE = 0.05


@dataclass
class Arguments:
    output_dir: str = option("demo", "Folder for data and results; must be new or empty.")
    model_name_or_path: str = option(str(EXAMPLES / "tiny_clipseg"), "The base model: a folder or a name on the Hub.")
    image_size: int = option(IMAGE_SIZE, "Side of the square images in pixels.")
    max_train_steps: int = option(660, "Optimizer steps of each run.")
    seed: int = option(42, "Of new weights, the order of images and the choice of prompts.")

    def __post_init__(self):
        output = Path(self.output_dir)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise InputError(f"--output_dir {output} exists already: remove it, or name another (make demo DEMO=NAME)")


def run(script: str, *flags: str) -> None:
    """Runs an example script; its own one line says what is wrong, where something is."""
    code = subprocess.run([sys.executable, str(EXAMPLES / script), *flags]).returncode
    if code:
        raise SystemExit(code)


def frozen_results(args: Arguments, data_dir: Path) -> dict:
    """What the base model does without any training."""
    model, processor = load_base(args.model_name_or_path)
    fit_processor(processor, model.config, args.image_size)
    test_set = SegmentationDataset(read_annotations(data_dir, "test"), processor)
    accelerator = Accelerator()
    loader = DataLoader(test_set, batch_size=32, collate_fn=test_set.collate)
    model, loader = accelerator.prepare(model, loader)
    test = evaluate(model, loader, accelerator)
    total = sum(parameter.numel() for parameter in model.parameters())
    figures = {"test_dice": test["dice"], "test_iou": test["iou"], "total_parameters": total}
    return {**figures, "trainable_parameters": 0, "train_seconds": 0.0}


def table(results: dict[str, dict]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| method | test Dice | test IoU | trainable parameters | share | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results.items():
        share = row["trainable_parameters"] / row["total_parameters"]
        scores = f"{row['test_dice']:.4f} | {row['test_iou']:.4f}"
        lines.append(
            f"| {name} | {scores} | {row['trainable_parameters']:,} | {share:.1%} | {row['train_seconds']:.0f} |"
        )
    return "\n".join(lines)


@exit_on_input_error
def main():
    args = parse_arguments(Arguments, description=__doc__)
    transformers_logging.disable_progress_bar()
    output, data_dir = Path(args.output_dir), Path(args.output_dir, "brain-mri")
    run("prepare_dataset.py", "brain-mri", str(data_dir))
    results = {}
    for name, flags in METHODS.items():
        print(f"\n{name}", flush=True)
        if flags is None:
            results[name] = frozen_results(args, data_dir)
            continue
        folder = output / name.replace(" ", "-").lower()
        settings = {
            "data_dir": data_dir,
            "output_dir": folder,
            "model_name_or_path": args.model_name_or_path,
            "image_size": args.image_size,
            "max_train_steps": args.max_train_steps,
            "num_warmup_steps": round(WARMUP_SHARE * args.max_train_steps),
            "seed": args.seed,
            **SCHEDULE,
        }
        run("finetune.py", *(f"--{flag}={value}" for flag, value in settings.items()), *flags)
        results[name] = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    text = table(results)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(output / "dense-vl" / "samples.png", output / "samples.png")
    print(f"\n{text}\n\nPictures of Dense VL: {output / 'samples.png'}")


if __name__ == "__main__":
    main()
