"""The flags that say where images, masks and prompts come from, and what is made of them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from peft_vlsm.segmentation.arguments import option
from peft_vlsm.segmentation.data.augmentation import Augmentation
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prompts.choice import RANDOM, check_prompt_choice


@dataclass
class PlaceArguments:
    """
    The two flags that name a data set as a whole. [`SourceArguments`] can name its splits one by one instead.
    """

    data_dir: str | None = option(
        None,
        "Folder of the data: the MedVLSM layout (anns/, images/, masks/); COCO (annotations/instances_SPLIT*.json and "
        "images/, or train/, valid/ and test/ with an _annotations.coco.json each); train/, val/ (or validation/) and "
        "test/ with a metadata.jsonl each; or Parquet or WebDataset shards, in such folders or named by their split "
        "(train-00000.parquet).",
    )
    dataset_name: str | None = option(None, "A data set on the Hub, or a folder that datasets.load_dataset knows.")


@dataclass
class SourceArguments:
    """
    The flags of a data set that finetune.py, evaluate.py and predict.py share: where its splits are, and how they are
    read. They are checked where [`DataArguments`] are made of them. Each field's help says what it does.
    """

    train_data_dir: str | None = option(None, "Folder of the training split: a metadata.jsonl, or shards.")
    validation_data_dir: str | None = option(None, "The same of the validation split.")
    test_data_dir: str | None = option(None, "The same of the test split.")
    dataset_config_name: str | None = option(None, "The configuration of dataset_name.")
    train_annotations: str | None = option(None, "COCO instance JSON of the training split.")
    validation_annotations: str | None = option(None, "The same of the validation split.")
    test_annotations: str | None = option(None, "The same of the test split.")
    image_root: str | None = option(None, "Folder below which COCO's file_name is found.")
    negatives: int = option(0, "COCO: phrases that an image lacks, added to every image with empty masks.")
    image_column: str | None = option(None, "Tables: column of images; image (or WebDataset's jpg, png) if not given.")
    mask_column: str | None = option(None, "Tables: column of masks; mask (or mask.png) if not given.")
    prompt_column: str | None = option(
        None, "Tables and metadata.jsonl: the prompts; prompt (in tables also prompts, txt or json) if not given."
    )
    streaming: bool = option(
        False, "Read a table without a copy on disk; training reads it while it runs (with max_train_steps)."
    )
    max_eval_samples: int | None = option(None, "Take the first so many rows alone, in evaluation and prediction.")
    override_prompt: str | None = option(None, "Take this text as every image's prompt.")

    def of_split(self, flag: str, split: str) -> str | None:
        """The value of a flag that each split has, such as `data_dir` or `annotations`."""
        return getattr(self, f"{SPLIT_FLAGS[split]}_{flag}")

    def is_given(self, flag: str) -> bool:
        """Whether any split has this flag."""
        return any(self.of_split(flag, split) is not None for split in SPLIT_FLAGS)


@dataclass
class DataArguments(SourceArguments, PlaceArguments):
    """
    Where the data is, which of its prompts are taken, and how images are varied. A script's own dataclass of arguments
    inherits this one. Each field's help says what it does.

    Raises:
        InputError: flags that exclude one another, do nothing, or have values that are not allowed.
    """

    max_train_samples: int | None = option(None, "Take the first so many training rows alone.")
    prompt: str = option(
        RANDOM,
        "Which prompts: random (training draws one; evaluation takes the one with the highest number), or p0 to p9.",
    )
    augment_flip: bool = option(
        False, "Mirror half of the images, at random, and swap left and right in their prompts."
    )
    augment_vertical_flip: bool = option(False, "The same top to bottom.")
    augment_rotation: float = option(0.0, "Rotate by up to so many degrees either way.")
    augment_scale: float = option(0.0, "Enlarge or shrink by up to this share: 0.2 is 0.8 to 1.2 times.")
    augment_crop: float = option(0.0, "Crop up to this share of width and height away; some of the object stays.")
    augment_colour: float = option(0.0, "Change brightness, contrast and saturation by up to this share each.")

    def __post_init__(self):
        self.check_data()

    def check_data(self) -> None:
        """Checks the flags against each other; raises [`InputError`]."""
        self._check_sources()
        self._check_idle_flags()
        for name in ("max_eval_samples", "max_train_samples"):
            self._refuse(name, getattr(self, name) is not None and getattr(self, name) < 1, "must be at least 1")
        self._refuse("negatives", self.negatives < 0, "must not be negative")
        check_prompt_choice(self.prompt)
        if self.override_prompt is not None:
            self._refuse("override_prompt", not self.override_prompt.strip(), "is empty; --prompt p0 is no prompt")
            self._refuse("override_prompt", self.prompt != RANDOM, f"replaces --prompt {self.prompt}; leave one out")
            self._refuse("override_prompt", self.negatives > 0, "would name the --negatives too; leave one out")
        self.augmentation()

    def augmentation(self) -> Augmentation | None:
        """The augmentation that the flags ask for; None where they ask for none."""
        values = {field.name: getattr(self, f"augment_{field.name}") for field in fields(Augmentation)}
        return Augmentation(**values) if any(values.values()) else None

    def columns(self) -> dict[str, str | None]:
        """The columns that the user named."""
        return {"image": self.image_column, "mask": self.mask_column, "prompt": self.prompt_column}

    def _check_sources(self) -> None:
        given = {
            "--data_dir": self.data_dir is not None,
            "--dataset_name": self.dataset_name is not None,
            "--train_data_dir, --validation_data_dir, --test_data_dir": self.is_given("data_dir"),
            "--train_annotations, --validation_annotations, --test_annotations": self.is_given("annotations"),
        }
        named = [flag for flag, value in given.items() if value]
        if len(named) != 1:
            problem = f"{' and '.join(named)} exclude one another" if named else "no data is named"
            raise InputError(f"{problem}; give one of {'; '.join(given)}")

    def _check_idle_flags(self) -> None:
        coco, table = self.is_given("annotations"), self.dataset_name is not None
        self._refuse("image_root", self.image_root is None and coco, "is missing; the annotations' images are there")
        self._refuse("image_root", self.image_root is not None and not coco, "needs --train_annotations or its like")
        self._refuse("dataset_config_name", self.dataset_config_name is not None and not table, "needs --dataset_name")
        for name in ("image_column", "mask_column", "prompt_column", "streaming"):
            self._refuse(name, getattr(self, name) not in (None, False) and coco, "does nothing with COCO annotations")
        self._refuse("negatives", self.negatives > 0 and table, "needs COCO annotations")

    def _refuse(self, name: str, bad: bool, problem: str) -> None:
        if bad:
            value: Any = getattr(self, name)
            raise InputError(f"--{name}{'' if value is None else f' {value}'} {problem}")


SPLIT_FLAGS = {"train": "train", "val": "validation", "test": "test"}


def each_source(
    args: SourceArguments, data_dirs: Iterable[str], dataset_names: Iterable[str], prompt: str = RANDOM
) -> list[DataArguments]:
    """
    Takes the data sets apart that flags name together, where several may stand beside one another. What says how they
    are read holds for all of them.

    Args:
        args ([`SourceArguments`]): the flags. `max_eval_samples` holds for every split, for training rows too.
        data_dirs (`Iterable[str]`): folders, each a data set.
        dataset_names (`Iterable[str]`): names on the Hub, each a data set of the configuration `dataset_config_name`.
        prompt (`str`): see [`DataArguments`].

    Returns:
        `list[DataArguments]`: at least one: of the folders, then of the names, then of the splits' own folders, then
        of COCO's annotations.

    Raises:
        InputError: no data is named, or a flag does nothing for one of the data sets.
    """
    shared = {each.name: getattr(args, each.name) for each in fields(SourceArguments)}
    places: list[dict[str, Any]] = [{"data_dir": folder} for folder in data_dirs]
    if named := list(dataset_names):
        config = shared.pop("dataset_config_name")
        places += [{"dataset_name": name, "dataset_config_name": config} for name in named]
    for flag, others in (("data_dir", ()), ("annotations", ("image_root",))):
        if args.is_given(flag):
            names = [*(f"{split}_{flag}" for split in SPLIT_FLAGS.values()), *others]
            places.append({name: shared.pop(name) for name in names})
    # Without any place, DataArguments says what is missing.
    return [
        DataArguments(**shared, **place, prompt=prompt, max_train_samples=args.max_eval_samples)
        for place in places or [{}]
    ]
