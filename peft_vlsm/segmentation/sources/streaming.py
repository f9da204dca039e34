"""
A table's rows, read while training runs: shared out over processes and workers, and resumed from their place.

Each worker of each process is a reader, with shards of its own where readers divide the shards evenly; else every
reader passes over the others' rows (datasets' rule, see split_dataset_by_node). Shards come in another order in every
epoch, and rows are shuffled within blocks: a block is read, and given in an order that follows from seed, epoch,
reader and block. A state is the place where the block began and how many of its rows were given, so a resumed run
gives exactly the rows that were still to come, for the price of reading one block again. (datasets' own shuffle buffer
forgets the rows that it held, and is therefore kept at one row, where it holds none; shards are read one at a time,
since datasets interleaves them by threads that it then sleeps for.)

A reader that is through begins its next epoch at once: processes never wait for one that has no rows left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset as Table
from datasets.distributed import split_dataset_by_node
from datasets.utils import logging as datasets_logging
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from peft_vlsm.segmentation.data.augmentation import Augmentation
from peft_vlsm.segmentation.data.examples import Example, ExampleMaker
from peft_vlsm.segmentation.data.workers import outlive_sigterm
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.processor import Processor
from peft_vlsm.segmentation.prompts.choice import RANDOM
from peft_vlsm.segmentation.sources.open import Stream
from peft_vlsm.segmentation.sources.tables import TABLE_ERRORS, RecordRow, deepest

BLOCK_ROWS = 256


@dataclass(frozen=True)
class StreamedExample(Example):
    """An [`Example`] that knows which worker read it, and that worker's place after it."""

    worker: int
    position: dict[str, Any]


class StreamingSegmentationDataset(IterableDataset[StreamedExample]):
    """
    The training rows of a table that is not read in advance; without an end. Iterate over it by [`StreamingLoader`].

    Args:
        stream ([`Stream`]): from [`open_stream`].
        processor ([`Processor`]): prepares the images; its size was set by [`fit_processor`].
        seed (`int`): of the rows' order, prompts and augmentation. A row's index is its place in this order.
        prompt (`str`): see [`SegmentationDataset`]. A row that lacks it ends the run when it is read.
        override_prompt (`str`, *optional*): see [`SegmentationDataset`].
        augmentation ([`Augmentation`], *optional*): see [`SegmentationDataset`].
        rank (`int`): this process's number.
        world_size (`int`): how many processes there are. All pass the same seed.
        block_rows (`int`): rows that are shuffled among one another; their undecoded pictures are held in memory.
    """

    def __init__(
        self,
        stream: Stream,
        processor: Processor,
        seed: int = 0,
        prompt: str = RANDOM,
        override_prompt: str | None = None,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        world_size: int = 1,
        block_rows: int = BLOCK_ROWS,
    ):
        self.stream = stream
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.block_rows = block_rows
        self._maker = ExampleMaker(processor, seed, prompt, override_prompt, augmentation)
        self.set_epoch(0)

    @property
    def epoch(self) -> int:
        """The epoch that the slowest worker of this process is in, counted from 0."""
        return min((place["epoch"] for place in self._positions.values()), default=self._first_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begins at this epoch, counted from 0, when rows are next asked for; forgets the place in another."""
        self._first_epoch = epoch
        self._workers, self._next_worker = 1, 0
        self._positions: dict[int, dict[str, Any]] = {}

    def advance(self, worker: int, workers: int, position: dict[str, Any]) -> None:
        """Notes that a worker's rows up to this position were used; [`StreamingLoader`] calls it."""
        self._workers, self._next_worker = workers, (worker + 1) % workers
        self._positions[worker] = position

    def state_dict(self) -> dict[str, Any]:
        """
        The place after the last row that was used: values that JSON takes, of this process alone.
        """
        return {
            "rank": self.rank,
            "world_size": self.world_size,
            "workers": self._workers,
            "next_worker": self._next_worker,
            "first_epoch": self._first_epoch,
            "positions": {str(worker): position for worker, position in self._positions.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes to the place of a [`state_dict`]; the next iteration gives the rows that followed.

        Raises:
            InputError: the state is of another process, or of a run with another number of processes.
        """
        if (state["rank"], state["world_size"]) != (self.rank, self.world_size):
            raise InputError(
                f"the place in the data is of process {state['rank']} of {state['world_size']}, this is process "
                f"{self.rank} of {self.world_size}; resume with as many processes"
            )
        self._first_epoch = state["first_epoch"]
        self._workers, self._next_worker = state["workers"], state["next_worker"]
        self._positions = {int(worker): position for worker, position in state["positions"].items()}

    def check_workers(self, workers: int) -> None:
        """Raises [`InputError`] where a state was loaded that has another number of workers (0 counts as 1)."""
        if self._positions and workers != self._workers:
            raise InputError(
                f"--dataloader_num_workers {workers}: the place in the data is of a run with {self._workers}; "
                "resume with as many"
            )

    def __iter__(self) -> Iterator[StreamedExample]:
        info = get_worker_info()
        workers = 1 if info is None else info.num_workers
        self.check_workers(workers)
        # torch asks its first worker first: after a resume that is the one whose turn it was.
        worker = 0 if info is None else (info.id + self._next_worker) % workers
        reader, readers = self.rank * workers + worker, self.world_size * workers
        for position, number, record in self._records(reader, readers, self._positions.get(worker)):
            index = number * readers + reader
            name = f"{self.stream.name}, row {number} of reader {reader}"
            try:
                prompts = self.stream.columns.prompts(record)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            row = RecordRow(index, prompts, name, record, self.stream.columns)
            example = self._maker.make(index, row, position["epoch"])
            if info is None:
                self.advance(0, 1, position)
            yield StreamedExample(**vars(example), worker=worker, position=position)

    def collate(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """See [`SegmentationDataset.collate`]; `places` are the rows' indices."""
        return self._maker.collate(examples)

    def _records(self, reader: int, readers: int, position: dict[str, Any] | None) -> Iterator[tuple[dict, int, dict]]:
        """Records without an end, each with the position after it and its number in the reader's epoch."""
        position = position or {"epoch": self._first_epoch, "block": None, "before": 0, "given": 0}
        while True:
            epoch, before, given = position["epoch"], position["before"], position["given"]
            shuffled = self.stream.table.shuffle(seed=self.seed, buffer_size=1, max_buffer_input_shards=1)
            table = split_dataset_by_node(shuffled, reader, readers)
            table.set_epoch(epoch)
            if position["block"] is not None:
                table.load_state_dict(position["block"])
            state, records = position["block"], self._read(table)
            while block := list(islice(records, self.block_rows)):
                order = np.random.default_rng((self.seed, epoch, reader, before)).permutation(len(block))
                for place in range(given, len(block)):
                    after = {"epoch": epoch, "block": state, "before": before, "given": place + 1}
                    yield after, before + place, block[order[place]]
                state, before, given = table.state_dict(), before + len(block), 0
            if before == 0:
                raise InputError(
                    f"{self.stream.name} has no row for reader {reader} of {readers} (processes times workers); take "
                    "fewer"
                )
            position = {"epoch": epoch + 1, "block": None, "before": 0, "given": 0}

    def _read(self, table: Table) -> Iterator[dict[str, Any]]:
        """`Table.iter` shares nothing out among torch's workers by itself, as `iter(table)` would."""
        verbosity = datasets_logging.get_verbosity()
        records = table.iter(batch_size=1)
        try:
            # Of a loaded state datasets warns that its shuffle buffer was lost; with one row it holds none.
            datasets_logging.set_verbosity_error()
            first = next(records, None)
            datasets_logging.set_verbosity(verbosity)
            while first is not None:
                yield {column: cells[0] for column, cells in first.items()}
                first = next(records, None)
        except TABLE_ERRORS as error:
            raise InputError(f"{self.stream.name} cannot be read further: {deepest(error)}") from error
        finally:
            datasets_logging.set_verbosity(verbosity)


class StreamingLoader:
    """
    Batches of a [`StreamingSegmentationDataset`], without an end; keeps its place up to date also with workers, which
    read ahead.

    Args:
        dataset ([`StreamingSegmentationDataset`]): of this process.
        batch_size (`int`): rows a batch.
        num_workers (`int`): processes that read and prepare rows; 0 is this process itself.
    """

    def __init__(self, dataset: StreamingSegmentationDataset, batch_size: int, num_workers: int = 0):
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        workers = max(1, self.num_workers)
        self.dataset.check_workers(workers)
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self._collate,
            worker_init_fn=outlive_sigterm,
            # Else it takes a number of torch's own generator, and a resumed run then has other random states.
            generator=torch.Generator(),
        )
        for batch, worker, position in loader:
            self.dataset.advance(worker, workers, position)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was given; see [`StreamingSegmentationDataset.state_dict`]."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See [`StreamingSegmentationDataset.load_state_dict`]."""
        self.dataset.load_state_dict(state)

    def _collate(self, examples: list[StreamedExample]) -> tuple[dict[str, torch.Tensor], int, dict[str, Any]]:
        return self.dataset.collate([*examples]), examples[-1].worker, examples[-1].position
