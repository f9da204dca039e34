"""Writes a segmentation data set in the layout that fine-tuning reads: annotations, images, masks and the licence.

    python examples/prepare_dataset.py brain-mri OUT              a brain template, nothing to download
    python examples/prepare_dataset.py kvasir RAW OUT             from the folder as its publishers distribute it
    python examples/prepare_dataset.py kvasir RAW OUT --anns DIR  with your own MedVLSM rows, prompts and splits
    python examples/prepare_dataset.py kvasir RAW --check         counts, and writes nothing

    OUT/anns/{train,val,test}.json    rows with image, mask and the prompts p0, p1, ...
    OUT/images/, OUT/masks/           images as published or PNG; masks 0 and 255, each of its image's size
    OUT/samples.png                   some images with their masks and prompts
    OUT/LICENSE                       whose the images are, and on what terms

Published splits stay. What a publisher lacks of validation and test is drawn with `--seed`, a tenth of the images
each, so that neither an image (by its pixels) nor a patient lies in two splits. `--check` takes RAW, or a folder that
this script has written. To add a data set, write a function that lists its samples and give it a row in `DATASETS`
(raw_datasets/registry.py).
"""

# ruff: noqa: E402
import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from peft_vlsm.segmentation.arguments import OneLineParser
from peft_vlsm.segmentation.data.annotations import SPLITS
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.output_folder import write_beside
from peft_vlsm.segmentation.prompts.attributes import measure_attributes

EXAMPLES = Path(__file__).parent
# `raw_datasets` lies beside this file, from wherever it is loaded.
sys.path.append(str(EXAMPLES))

from raw_datasets.checks import Check, check_written, load_tokenizer
from raw_datasets.overview import Overview
from raw_datasets.own_annotations import apply_annotations
from raw_datasets.registry import DATASETS
from raw_datasets.samples import Dataset, Sample
from raw_datasets.splits import assign_splits


def write_dataset(samples: Sequence[Sample], folder: Path, dataset: Dataset) -> dict[str, list[dict]]:
    """
    Writes images, masks, annotations and the overview; the same samples give the same bytes.

    Args:
        samples (`Sequence[Sample]`): the samples, in the order of the rows.
        folder (`Path`): an empty folder.
        dataset ([`Dataset`]): says in which folders a split's files lie, and which notice goes with them.

    Returns:
        `dict[str, list[dict]]`: the rows of each split.

    Raises:
        [`InputError`]: an image and its mask do not fit, a mask is empty that may not be, or two files have one name.
    """
    for name in ("anns", "images", "masks"):
        (folder / name).mkdir()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    written: dict[Path, object] = {}
    overview = Overview(len(samples))
    for sample, image, mask, row in annotate(samples):
        place = dataset.folders.get(str(sample.split), "")
        image_file = folder / "images" / place / sample.image_name
        mask_file = folder / "masks" / place / sample.mask_name
        if claim(written, image_file, sample.image_key):
            save_image(sample, image, image_file)
        if claim(written, mask_file, sample.load):
            Image.fromarray(mask.astype(np.uint8) * 255).save(mask_file, **encoding(mask_file))
        rows[str(sample.split)].append(row)
        overview.add(image, mask, richest_prompt(row))
    for split in SPLITS:
        (folder / "anns" / f"{split}.json").write_text(json.dumps(rows[split], indent=1) + "\n", encoding="utf-8")
    overview.save(folder / "samples.png")
    shutil.copyfile(dataset.notice, folder / "LICENSE")
    return rows


def claim(written: dict[Path, object], file: Path, owner: object) -> bool:
    """Whether `file` is still to be written for `owner`; makes its folder. Two owners of one name are an error."""
    if written.setdefault(file, owner) != owner:
        raise InputError(f"two different files of RAW would become {file.name}: rename one of them")
    file.parent.mkdir(parents=True, exist_ok=True)
    return not file.exists()


def save_image(sample: Sample, image: np.ndarray, file: Path) -> None:
    """Copies the published file, or encodes the pixels where the format changes."""
    if sample.source is not None and sample.source.suffix.lower() == file.suffix.lower():
        shutil.copyfile(sample.source, file)
    else:
        Image.fromarray(image).save(file, **encoding(file))


def encoding(file: Path) -> dict[str, int]:
    """Pillow's options: JPEG, which only the user's own annotations can ask for, in its best quality."""
    return {"quality": 100, "subsampling": 0} if file.suffix.lower() != ".png" else {}


def richest_prompt(row: dict) -> str:
    """The last prompt of a row, in its first wording."""
    value = list(row["prompts"].values())[-1]
    return value if isinstance(value, str) else value[0]


def annotate(samples: Sequence[Sample]) -> Iterator[tuple[Sample, np.ndarray, np.ndarray, dict]]:
    """
    Loads the samples one by one and makes their rows, in the order of the rows.

    Args:
        samples (`Sequence[Sample]`): the samples; those with a `row` of their own keep it.

    Yields:
        `tuple[Sample, np.ndarray, np.ndarray, dict]`: the sample, its image and mask, and a row with the fields of
        MedVLSM's; `bbox` is the first and the last column and row, as [x0, y0, x1, y1], and of an empty mask
        [width, height, 0, 0].

    Raises:
        [`InputError`]: an image and its mask do not fit, or a mask is empty that may not be.
    """
    numbers: dict[str | None, int] = dict.fromkeys((*SPLITS, None), 0)
    for sample in tqdm(samples, desc="images and masks", unit="mask"):
        image, mask = sample.load()
        number = numbers[sample.split]
        numbers[sample.split] += 1
        yield sample, image, mask, sample.row if sample.row is not None else make_row(sample, image, mask, number)


def make_row(sample: Sample, image: np.ndarray, mask: np.ndarray, number: int) -> dict:
    """The row of one sample, of which `number` is the place in its file; see [`annotate`]."""
    try:
        empty = sample.may_be_empty and not mask.any()
        attributes = None if empty else measure_attributes(image, mask)
    except ValueError as error:
        raise InputError(f"{sample.mask_name}: {error}; mend the file or take it out of RAW") from None
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (width, height, 0, 0) if empty else (columns[0], rows[0], columns[-1], rows[-1])
    return {
        "bbox": [int(edge) for edge in box],
        "cat": sample.category,
        "segment_id": sample.segment_id or Path(sample.mask_name).stem,
        "img_name": sample.image_name,
        "mask_name": sample.mask_name,
        "sentences": [{"idx": 0, "sent_id": number, "sent": ""}],
        "sentences_num": 1,
        "prompts": sample.describe(sample.class_names, attributes),
    }


def check_samples(samples: Sequence[Sample], check: Check) -> None:
    """Counts over samples without writing them."""
    for sample, image, mask, row in annotate(samples):
        check.add(row, sample.image_key, image, mask)


def parse_arguments() -> argparse.Namespace:
    """Reads NAME, RAW where the data set needs it, OUT and the flags from the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True, title="data sets")
    for name, dataset in DATASETS.items():
        arguments = names.add_parser(name, help=dataset.description, description=dataset.description)
        if dataset.needs_raw:
            arguments.add_argument("raw", metavar="RAW", type=Path, help="the folder with the downloaded files")
        arguments.add_argument(
            "out",
            metavar="OUT",
            type=Path,
            nargs="?",
            help="the folder to write, new or empty",
        )
        arguments.add_argument(
            "--check", action="store_true", help="count images, empty masks, duplicates and over-long prompts"
        )
        arguments.add_argument(
            "--tokenizer",
            default=str(EXAMPLES / "tiny_clipseg"),
            help="the model, a folder or a name on the Hub, whose tokenizer --check measures prompts with. The "
            "default, the embedded model, knows fewer words than CLIP and so counts more over-long prompts.",
        )
        if dataset.needs_raw:
            arguments.add_argument("--seed", type=int, default=0, help="what drawn splits depend on (default: 0)")
            arguments.add_argument(
                "--anns", metavar="DIR", type=Path, help="your own train.json, val.json and test.json of MedVLSM"
            )
    parsed = parser.parse_args()
    if parsed.out is None and not parsed.check:
        parser.error(f"the following arguments are required: OUT (or {parsed.name} --check)")
    return parsed


def list_samples(arguments: argparse.Namespace) -> tuple[list[Sample], list[Sample]]:
    """The samples to write, and those that are left out since another split has their image or patient."""
    dataset = DATASETS[arguments.name]
    if not dataset.needs_raw:
        return dataset.list_samples(), []
    if not arguments.raw.is_dir():
        raise InputError(f"RAW {arguments.raw} is not a folder: name the one with the downloaded files")
    samples = dataset.list_samples(arguments.raw)
    if arguments.anns is not None:
        return apply_annotations(samples, arguments.anns), []
    return (samples, []) if arguments.out is None else assign_splits(samples, arguments.seed)


@exit_on_input_error
def main() -> None:
    arguments = parse_arguments()
    dataset = DATASETS[arguments.name]
    check = Check(load_tokenizer(arguments.tokenizer)) if arguments.check else None
    if arguments.out is None and dataset.needs_raw and (arguments.raw / "anns").is_dir() and not arguments.anns:
        check_written(arguments.raw, check)
    elif arguments.out is None:
        check_samples(list_samples(arguments)[0], check)
    else:
        with write_beside(arguments.out) as folder:
            samples, left_out = list_samples(arguments)
            rows = write_dataset(samples, folder, dataset)
            if check is not None:
                check_samples([*samples, *left_out], check)
        print(f"{arguments.out}: " + ", ".join(f"{split} {len(rows[split])}" for split in SPLITS) + " rows")
        if missing := [split for split in SPLITS if not rows[split]]:
            print(
                f"{' and '.join(missing)} got no row: RAW has too few different images or patients to fill all splits"
            )
        if left_out:
            print(f"left out {len(left_out)} rows whose image or patient another published split has")
    if check is not None:
        print(f"{arguments.name}: {check.report()}")


if __name__ == "__main__":
    main()
