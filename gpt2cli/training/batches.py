"""Which rows each step of a run learns from: a function of the seed and the step alone.

So a run goes on exactly where it was, also in the middle of an epoch, and any number of processes
learns from the same rows: a step has one batch, of which each process takes its slice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.errors import UsageError
from gpt2cli.training.packing import Batch, Rows
from gpt2cli.training.shuffling import shuffled


class Batches(Protocol):
    """The batches of a run, of `batch_size` rows each over all processes."""

    batch_size: int

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """What process `rank` of `world` learns from at a step."""

    def targets(self, step: int) -> int:
        """How many tokens all processes learn from at a step."""


class Epochs:
    """Every row once per epoch, in another random order each time; a batch may span two epochs.

    Raises `UsageError` for fewer rows in a batch than processes.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.steps_per_epoch = len(rows) / batch_size
        self._targets = rows.targets
        # A batch of few rows may need several orders, and each step needs them again.
        self._order = lru_cache(maxsize=2)(lambda epoch: shuffled(len(rows), seed, epoch))

    def rows_of(self, step: int) -> NDArray:
        """The rows that a step learns from. → (batch_size,)"""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(places, len(self.rows))
        return np.array([self._order(e)[i] for e, i in zip(epochs.tolist(), places, strict=True)])

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """What process `rank` of `world` learns from at a step."""
        return self.rows.batch(_share(self.rows_of(step), rank, world))

    def targets(self, step: int) -> int:
        """How many tokens all processes learn from at a step."""
        return int(self._targets[self.rows_of(step)].sum())


class Samples:
    """Windows of one text that begin anywhere, drawn with replacement: training from scratch.

    `ids` (N,) are its tokens. Raises `UsageError` if they are too few for a window.
    """

    def __init__(self, ids: NDArray, context_length: int, batch_size: int, seed: int) -> None:
        if len(ids) < context_length + 1:
            raise UsageError(f"{len(ids)} tokens are too few for a context of {context_length}")
        self.ids, self.context_length, self.batch_size = ids, context_length, batch_size
        self._seed = seed

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """What process `rank` of `world` learns from at a step."""
        T = self.context_length
        numbers = np.random.default_rng(np.random.SeedSequence([self._seed, step]))
        starts = numbers.integers(0, len(self.ids) - T, self.batch_size)
        windows = [self.ids[s : s + T + 1] for s in _share(starts, rank, world).tolist()]
        return Batch(np.stack(windows).astype(np.int64))

    def targets(self, step: int) -> int:
        """How many tokens all processes learn from at a step."""
        return self.batch_size * self.context_length


def _share(rows: NDArray, rank: int, world: int) -> NDArray:
    """The slice of one process; together they are all rows in order, as equal as can be."""
    if len(rows) < world:
        raise UsageError(f"batch_size {len(rows)} is less than {world} processes", "batch_size")
    return rows[len(rows) * rank // world : len(rows) * (rank + 1) // world]
