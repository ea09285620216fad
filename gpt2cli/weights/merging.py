"""Adapters merged into a model as its weights are read: every decoder then has one plain model.

W + Σ weight · scale · (B A)ᵀ, computed in fp32 when a tensor is used; what no adapter changes
stays in its file. So nothing is written, a start with an adapter takes little longer than one
without, and quantized weights are made of the sums and kept like those of any other model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.weights import adapter
from gpt2cli.weights.adapter import LowRank
from gpt2cli.weights.safetensors import StoredTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Chosen:
    """An adapter's directory, and how much of it is added: 1 all, 0 none, below 0 the opposite."""

    directory: Path
    weight: float = 1.0

    @property
    def files(self) -> tuple[Path, Path]:
        """What it consists of. Raises `WeightsError` if that is not there."""
        return adapter.files(self.directory)

    def __str__(self) -> str:
        return str(self.directory) + ("" if self.weight == 1 else f"={self.weight:g}")


def choose(text: str | Path) -> Chosen:
    """Read DIR or DIR=WEIGHT. Raises `UsageError` or `WeightsError` if there is no adapter."""
    directory, weight = Path(text).expanduser(), 1.0
    name, equals, number = str(directory).rpartition("=")
    if equals and not directory.is_dir():
        directory, weight = Path(name), _weight(number, text)
    if not directory.is_dir():
        raise UsageError(f"adapter must be a directory; there is none named {directory}", "adapter")
    chosen = Chosen(directory, weight)
    _ = chosen.files
    return chosen


def _weight(number: str, text: str | Path) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(
            f"adapter must be a directory, or DIR=WEIGHT such as tuned=0.5, not {text}", "adapter"
        )
    return weight


_CACHED = 2**18  # numbers
_Change: TypeAlias = "tuple[LowRank | NDArray, float]"  # or what takes the tensor's place


@dataclass(frozen=True, slots=True)
class MergedTensor(StoredTensor):
    """A tensor of a file (`bits`), changed by adapters each time it is read."""

    changes: tuple[_Change, ...]

    def to_numpy(self) -> NDArray:
        """The sum, in fp32, by as many rows at a time as a processor's cache holds."""
        own = StoredTensor.to_numpy(self)
        total = np.empty(own.shape, np.float32)
        rows = max(1, _CACHED * len(own) // own.size)
        for begin in range(0, len(own), rows):
            span = slice(begin, begin + rows)
            total[span] = own[span]
            for change, weight in self.changes:
                if isinstance(change, LowRank):
                    total[span] += (
                        change.a.T[span] * np.float32(weight * change.scale)
                    ) @ change.b.T
                else:
                    total[span] += np.float32(weight) * (change[span] - own[span])
        self.release()
        return total

    def to_torch(self, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        """The sum, rounded once to a precision."""
        import torch

        return torch.from_numpy(self.to_numpy()).to(device=device, dtype=dtype)


def merge(
    tensors: Mapping[str, StoredTensor], config: ModelConfig, adapters: Sequence[Chosen]
) -> dict[str, StoredTensor]:
    """A model's tensors with adapters added. Raises `WeightsError` for an adapter that cannot be.

    Each adds to what the file holds, so that none depends on another.
    """
    changes: dict[str, list[_Change]] = {}
    for chosen in adapters:
        found = adapter.read(chosen.directory, config)
        for own in (found.updates, found.saved):
            for name, change in own.items():
                changes.setdefault(name, []).append((change, chosen.weight))
    merged = {
        name: MergedTensor(tensors[name].bits, tensors[name].dtype, tuple(summands))
        for name, summands in changes.items()
    }
    return {**tensors, **merged}
