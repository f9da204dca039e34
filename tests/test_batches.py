"""Every step takes the same rows, and has the same mean loss, however many processes and micro-batches share it."""

import pytest
import torch

from peft_vlsm.segmentation.training.batches import StepBatches

ROWS = 13
# Batch size, accumulation and processes: all make steps of six rows at most.
SHARES = [(6, 1, 1), (3, 2, 1), (3, 1, 2), (2, 3, 1), (1, 3, 2), (2, 1, 3), (1, 2, 3)]


def samplers(batch_size, accumulation, processes, rows=ROWS, seed=0):
    return [StepBatches(rows, batch_size, accumulation, processes, process, seed) for process in range(processes)]


def losses(rows):
    """A loss for each row that tells it apart."""
    return torch.tensor([2.0**row for row in rows], dtype=torch.float64)


def step_means(shares, epoch):
    """What DistributedDataParallel and accelerate make of the contributions: the mean over both."""
    batches, accumulation = samplers(*shares), shares[1]
    for sampler in batches:
        sampler.begin(epoch)
    means = torch.zeros(batches[0].steps, dtype=torch.float64)
    for sampler in batches:
        for number, rows in enumerate(sampler):
            step, part = divmod(number, accumulation)
            means[step] += sampler.mean(losses(rows), step, part) / (accumulation * len(batches))
    return means


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("epoch", [0, 3])
def test_the_mean_of_a_step_is_that_of_one_process(shares, epoch):
    torch.testing.assert_close(step_means(shares, epoch), step_means(SHARES[0], epoch), atol=0, rtol=1e-12)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_every_row_once_an_epoch_and_all_processes_in_step(shares):
    batches = samplers(*shares)
    assert {len(sampler) for sampler in batches} == {3 * shares[1]} == {len(list(sampler)) for sampler in batches}
    counted = [
        row
        for sampler in batches
        for number, rows in enumerate(sampler)
        for row, loss in zip(rows, rows, strict=True)
        if sampler.mean(torch.ones(len(rows)), *divmod(number, shares[1])) > 0
    ]
    assert sorted(counted) == list(range(ROWS))


def test_an_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        (sampler,) = samplers(6, 1, 1, seed=seed)
        sampler.begin(epoch)
        return [row for rows in sampler for row in rows]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_resumed_epoch_gives_what_was_to_come():
    (sampler,) = samplers(2, 2, 1)
    whole = list(sampler)
    sampler.begin(0, first_step=2)
    assert list(sampler) == whole[4:] and len(sampler) == len(whole) - 4
    sampler.begin(0, first_step=sampler.steps)
    assert list(sampler) == [] and len(sampler) == 0
