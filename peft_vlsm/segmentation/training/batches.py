"""
Which rows make up each optimizer step: the same ones however many processes share the work.

A step takes `rows_per_step` rows of the epoch's order. They are cut into micro-batches (gradient accumulation), and
each of these into shares, one a process. The last step of an epoch has fewer rows; a share that would be empty then
holds one row that counts for nothing, so that every process takes part in every step.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader, Sampler

from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.data.workers import outlive_sigterm
from peft_vlsm.segmentation.sources.streaming import StreamingLoader


class StepBatches(Sampler[list[int]]):
    """
    A batch sampler for `DataLoader(batch_sampler=...)` that gives one process its share of every micro-batch.

    Args:
        rows (`int`): rows of the data set, at least one.
        batch_size (`int`): rows in a share.
        accumulation (`int`): micro-batches in a step.
        processes (`int`): how many there are.
        process (`int`): which one this is, counted from 0.
        seed (`int`): of the order of rows, together with the epoch.
    """

    def __init__(self, rows: int, batch_size: int, accumulation: int, processes: int, process: int, seed: int):
        self.rows = rows
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.processes = processes
        self.process = process
        self.seed = seed
        self.epoch = 0
        self.first_step = 0

    @property
    def rows_per_step(self) -> int:
        """Rows of all processes in a step, the last one of an epoch aside."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.rows // self.rows_per_step)

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """
        Chooses what the next iteration gives.

        Args:
            epoch (`int`): counted from 0; each has its own order of rows.
            first_step (`int`, defaults to 0): steps of the epoch that a resumed run has behind it.
        """
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        for step in range(self.first_step, self.steps):
            for part in range(self.accumulation):
                start, end = self._share(step, part)
                yield order[start:end] or order[:1]

    def _share(self, step: int, part: int) -> tuple[int, int]:
        start = step * self.rows_per_step + (part * self.processes + self.process) * self.batch_size
        return min(start, self.rows), min(start + self.batch_size, self.rows)

    def mean(self, losses: torch.Tensor, step: int, part: int) -> torch.Tensor:
        """
        What one process contributes to the mean loss of a step.

        DistributedDataParallel and accelerate divide by the numbers of processes and of micro-batches: multiplied by
        these, the sum over all is the mean over the step's rows.

        Args:
            losses (`torch.Tensor` of shape `(B,)`): of the share that the sampler gave.
            step (`int`): of the epoch, counted from 0.
            part (`int`): the micro-batch, counted from 0.

        Returns:
            `torch.Tensor`: a scalar; zero for a share that counts for nothing.
        """
        start, end = self._share(step, part)
        rows = min(self.rows_per_step, self.rows - step * self.rows_per_step)
        return losses[: end - start].sum() * (self.processes * self.accumulation / rows)


class RowSteps:
    """
    The batches of one process from a data set whose rows are known.

    Args:
        dataset ([`SegmentationDataset`]): the training rows.
        sampler ([`StepBatches`]): this process's share of them.
        num_workers (`int`): processes that read images ahead.
    """

    stream: None = None

    def __init__(self, dataset: SegmentationDataset, sampler: StepBatches, num_workers: int):
        self.dataset = dataset
        self.sampler = sampler
        self.steps, self.rows_per_step = sampler.steps, sampler.rows_per_step
        # A generator of its own: a loader takes a number from torch's for every epoch, also from the middle of one.
        self.loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=num_workers,
            generator=torch.Generator(),
            worker_init_fn=outlive_sigterm,
        )

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Chooses what the next iteration gives: an epoch, counted from 0, after so many of its steps."""
        self.dataset.set_epoch(epoch)
        self.sampler.begin(epoch, first_step)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.loader)

    def mean(self, losses: torch.Tensor, step: int, part: int) -> torch.Tensor:
        """See [`StepBatches.mean`]."""
        return self.sampler.mean(losses, step, part)

    def names(self, batch: dict[str, torch.Tensor]) -> str:
        """The files or records of a batch, for messages."""
        return ", ".join(self.dataset.rows[place].name for place in batch["places"].tolist())


class StreamSteps:
    """
    The batches of one process from a stream, which has no epochs of its own: validation comes after so many steps.

    Args:
        loader ([`StreamingLoader`]): of this process; every batch of it is full.
        accumulation (`int`): batches in a step.
        processes (`int`): how many there are.
        steps (`int`): steps between validations, which count as an epoch.
    """

    def __init__(self, loader: StreamingLoader, accumulation: int, processes: int, steps: int):
        self.stream = loader
        self.accumulation = accumulation
        self.rows_per_step = loader.batch_size * accumulation * processes
        self.steps = steps
        self.first_step = 0
        self._batches: Iterator[dict[str, torch.Tensor]] | None = None

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """See [`RowSteps.begin`]; the stream's own place says which rows follow."""
        self.first_step = first_step

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self._batches is None:
            self._batches = iter(self.stream)
        yield from islice(self._batches, (self.steps - self.first_step) * self.accumulation)

    def mean(self, losses: torch.Tensor, step: int, part: int) -> torch.Tensor:
        """See [`StepBatches.mean`]."""
        return losses.mean()

    def names(self, batch: dict[str, torch.Tensor]) -> str:
        """See [`RowSteps.names`]."""
        return f"{self.stream.dataset.stream.name}, rows {', '.join(map(str, batch['places'].tolist()))}"
