"""What a step learns from depends on the seed and the step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import PLAN, open_run

from gpt2cli.errors import UsageError
from gpt2cli.training.batches import Epochs, Samples
from gpt2cli.training.packing import Batch, Rows

T = 4


def rows(count: int) -> Rows:
    """Rows of one document each, of which row i learns 1 + i mod 4 tokens."""
    lengths = 2 + np.arange(count) % T
    begins = np.arange(count) * (T + 1)
    ids = np.arange(count * (T + 1))
    return Rows(ids, T, np.arange(count + 1), begins, lengths, np.zeros(count, int))


def first(batch: Batch) -> list[int]:
    """Which rows they are."""
    return [int(i) // (T + 1) for i in batch.ids[:, 0]]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_every_row_is_learned_once_per_epoch(count: int, batch_size: int, seed: int) -> None:
    batches = Epochs(rows(count), batch_size, seed)
    epochs = 3
    seen = [row for step in range(epochs * count) for row in first(batches.batch(step))]
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert batches.steps_per_epoch == count / batch_size


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {
        tuple(Epochs(rows(40), 40, seed).rows_of(step)) for seed in range(2) for step in range(2)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 2, 8])
def test_any_number_of_processes_learns_the_same_in_order(world: int, micro: int) -> None:
    sampled = Samples(np.arange(100), T, 8, seed=2)
    for batches in (Epochs(rows(13), 8, seed=1), sampled):
        for step in range(5):
            parts = [
                part
                for rank in range(world)
                for part in batches.batch(step, rank, world).micro(micro)
            ]
            whole = batches.batch(step)
            assert np.concatenate([part.ids for part in parts]).tolist() == whole.ids.tolist()
            assert sum(part.targets for part in parts) == batches.targets(step) == whole.targets


def test_a_run_resumed_in_mid_epoch_goes_on_as_if_it_never_stopped() -> None:
    whole = Epochs(rows(17), 5, seed=3)
    expected = [whole.rows_of(step).tolist() for step in range(12)]
    for stopped in (1, 3, 7):
        resumed = Epochs(rows(17), 5, seed=3)
        assert [resumed.rows_of(s).tolist() for s in range(stopped, 12)] == expected[stopped:]


def test_windows_from_scratch_are_those_of_the_trainer(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        settings = PLAN.training
        ids = run.corpus.train.numpy().astype(np.uint16)
        batches = Samples(ids, PLAN.model.context_length, settings.batch_size, settings.seed)
        for step in (0, 7):
            run.step = step
            assert torch.equal(torch.from_numpy(batches.batch(step).ids), run._batch())
            assert batches.batch(step).mask is None


def test_too_little_for_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="4 tokens are too few for a context of 4"):
        Samples(np.arange(4), 4, 1, seed=0)
    with pytest.raises(UsageError, match="batch_size 3 is less than 4 processes"):
        Epochs(rows(9), 3, 0).batch(0, rank=1, world=4)
