"""One training run, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2cli.config.fields import require, require_size


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run. Steps are optimiser steps; `batch_size` counts sequences."""

    steps: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0
    val_fraction: float = 0.1
    eval_interval: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "eval_interval"):
            require_size(key, getattr(self, key), 1)
        for key in ("warmup_steps", "seed"):
            require_size(key, getattr(self, key), 0)
        for key in ("learning_rate", "grad_clip"):
            require(0 < getattr(self, key) < math.inf, key, getattr(self, key), "above 0")
        for key in ("min_learning_rate", "weight_decay"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "between 0 and 1")
