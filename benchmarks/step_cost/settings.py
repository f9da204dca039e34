"""What speed.py is asked for: its flags, each checked once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from peft_vlsm.segmentation.arguments import option
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.training.methods import METHODS

FULL = "full"
REPORT_FILES = ("results.json", "results.md", "speed.png")


@dataclass
class Arguments:
    output_dir: str = field(kw_only=True, metadata={"help": "Folder for the results; must be new or empty."})
    model: Literal["clipseg", "sam3"] | None = option(
        None, "A published model's sizes: CIDAS/clipseg-rd64-refined (if neither is given) or facebook/sam3."
    )
    model_name_or_path: str | None = option(
        None, "Instead of --model: a folder or a name on the Hub, whose config.json alone is read."
    )
    methods: list[str] | None = option(
        None, f"What is measured: some of {' '.join(METHODS)}; all, if not given. Ratios need full."
    )
    gradient_checkpointing: list[str] | None = option(
        None, "Those of the methods that are measured with gradient checkpointing, too; none, if not given."
    )
    per_device_train_batch_size: int = option(4, "Pairs of image and prompt a batch, in prediction too.")
    image_size: int | None = option(None, "Side of the square images in pixels; the model's own if not given.")
    prompt_tokens: int = option(16, "Tokens of every prompt.")
    prompts: int = option(8, "Prompts on one image, where embeddings are reused.")
    steps: int = option(5, "Passes that are timed in a turn.")
    warmup_steps: int = option(2, "Passes before them that are not.")
    repeats: int = option(3, "Turns: in each, every method is measured once.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Of training; as in finetune.py fp16 on a GPU and no on a CPU, if not given."
    )
    seed: int = option(42, "Of weights, images, prompts and masks.")
    overwrite_output_dir: bool = option(False, "Replace the results that output_dir holds.")

    def __post_init__(self):
        self.methods = list(METHODS if self.methods is None else dict.fromkeys(self.methods))
        self.gradient_checkpointing = list(dict.fromkeys(self.gradient_checkpointing or []))
        for name in self.methods:
            if name not in METHODS:
                raise InputError(f"--methods {name} is not a method; allowed are {', '.join(METHODS)}")
        if FULL not in self.methods:
            raise InputError(f"--methods {' '.join(self.methods)} lacks {FULL}, which the others are compared with")
        others = [name for name in self.gradient_checkpointing if name not in self.methods]
        self._check("gradient_checkpointing", not others, f"names {', '.join(others[:1])}, which is not in --methods")
        for name in ("per_device_train_batch_size", "prompts", "steps", "repeats", "warmup_steps"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        self._check("image_size", self.image_size is None or self.image_size > 0, "must be above 0")
        self._check("prompt_tokens", self.prompt_tokens > 2, "must be above 2: a beginning, a word and an end")
        self._check("seed", 0 <= self.seed < 2**32, "must lie between 0 and 4294967295")
        if self.model is None and self.model_name_or_path is None:
            self.model = "clipseg"
        both = self.model is not None and self.model_name_or_path is not None
        self._check("model", not both, "does nothing with --model_name_or_path; leave one out")
        self._check_output()

    def _check_output(self):
        output = Path(self.output_dir)
        self._check("output_dir", not output.exists() or output.is_dir(), "is a file; name a folder")
        held = sorted(file.name for file in output.iterdir()) if output.exists() else []
        problem = "is not empty; name another, or add --overwrite_output_dir"
        self._check("output_dir", not held or self.overwrite_output_dir, problem)
        others = [name for name in held if name not in REPORT_FILES]
        self._check("output_dir", not others, f"holds {', '.join(others[:1])}, which is no result; name another")

    def _check(self, name: str, good: bool, problem: str):
        if not good:
            raise InputError(f"--{name} {getattr(self, name)} {problem}")
