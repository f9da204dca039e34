"""Puts samples into splits: published ones stay, missing ones are drawn, and no image or patient lies on two sides."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from raw_datasets.samples import Sample

SHARE = 0.1
# Who keeps an image that a publisher has in two splits: the split that is measured.
PRECEDENCE = ("test", "val", "train", None)


def image_digest(image: np.ndarray) -> str:
    """A digest of an image's pixels: equal for equal images, whatever their files' formats."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def assign_splits(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """
    Gives every sample its split.

    Images of one patient or of the same pixels stay together. Of "val" and "test", what no sample has gets a tenth of
    the images that are open (`split` None), drawn group by group; the rest become "train".

    Args:
        samples (`Sequence[Sample]`): in the order of the rows.
        seed (`int`): what the draw depends on, besides the samples.

    Returns:
        `tuple[list[Sample], list[Sample]]`: the samples with their splits, and those left out since the publisher's
        splits hold the same image or patient twice. Where there are fewer groups than splits to draw, some of the
        latter stay empty.
    """
    if all(sample.split is not None for sample in samples):
        return list(samples), []
    groups = _group(samples)
    open_groups = [group for group in groups if all(samples[place].split is None for place in group)]
    missing = [split for split in ("val", "test") if all(sample.split != split for sample in samples)]
    splits = _draw(samples, open_groups, missing, seed)
    for group in groups:
        kept = min((samples[place].split for place in group), key=PRECEDENCE.index)
        splits.update({place: kept for place in group if kept is not None and samples[place].split == kept})
    assigned = [replace(sample, split=splits[place]) for place, sample in enumerate(samples) if place in splits]
    return assigned, [sample for place, sample in enumerate(samples) if place not in splits]


def _group(samples: Sequence[Sample]) -> list[list[int]]:
    """Places of the samples that share an image, its pixels or a patient, directly or through others."""
    digests: dict[object, str] = {}
    for sample in tqdm(samples, desc="comparing images", unit="mask"):
        if sample.image_key not in digests:
            digests[sample.image_key] = image_digest(sample.load()[0])
    ties = [(place, ("pixels", digests[sample.image_key])) for place, sample in enumerate(samples)]
    ties += [(place, ("patient", sample.patient)) for place, sample in enumerate(samples) if sample.patient]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(key for _, key in ties), len(samples))}
    size = len(samples) + len(numbers)
    edges = ([place for place, _ in ties], [numbers[key] for _, key in ties])
    labels = connected_components(coo_array((np.ones(len(ties)), edges), shape=(size, size)), directed=False)[1]
    groups: dict[int, list[int]] = {}
    for place, label in enumerate(labels[: len(samples)].tolist()):
        groups.setdefault(label, []).append(place)
    return list(groups.values())


def _draw(samples: Sequence[Sample], groups: list[list[int]], missing: list[str], seed: int) -> dict[int, str]:
    """The split of each place in open groups."""
    sizes = [len({samples[place].image_key for place in group}) for group in groups]
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    wanted = max(1, round(SHARE * sum(sizes)))
    splits: dict[int, str] = {}
    for later, split in zip(reversed(range(len(missing))), missing, strict=True):
        count = 0
        # A group is left for training, and before a split takes a second one, for each of the later splits.
        while count < wanted and len(order) > 1 + (later if count else 0):
            number = order.pop()
            count += sizes[number]
            splits.update(dict.fromkeys(groups[number], split))
    splits.update({place: "train" for number in order for place in groups[number]})
    return splits
