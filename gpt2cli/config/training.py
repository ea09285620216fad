"""One training run, in numbers and names: what it learns from, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gpt2cli.config.fields import require, require_size

SCHEDULES = ("cosine", "wsd")
OPTIMIZERS = ("adamw", "muon")
TUNING_DROPOUT = 0.1  # of a model, in what `fine_tuning` describes
_TOKENS_A_STEP = 16_384
_VALIDATIONS_AN_EPOCH = 4


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The files to learn from, as absolute names, and how they are read.

    `validation` are files to validate on; without any, a part of `files` is held out. `fields` are
    names of a row's fields, as `training.documents.Fields` reads them. `mask_prompts` says that
    prompts are only read, not learned.
    """

    files: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    mask_prompts: bool = True


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run. Steps are optimiser steps; `batch_size` counts the sequences of each.

    A step computes `micro_batch_size` sequences at a time, all at once if that is None; what it
    learns is the same. `epochs`, where given, decide on the number of steps. The learning rate
    warms up and falls as a "cosine", or stays and falls over the last steps ("wsd"). `patience`
    is how many validations in a row without a best end a run.
    """

    steps: int = 5000
    epochs: float | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0
    val_fraction: float = 0.1
    eval_interval: int = 250
    patience: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "eval_interval"):
            require_size(key, getattr(self, key), 1)
        for key in ("micro_batch_size", "patience"):
            if getattr(self, key) is not None:
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
        if self.epochs is not None:
            require(0 < self.epochs < 10**6, "epochs", self.epochs, "above 0 and below a million")
        for key, names in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            value = getattr(self, key)
            require(value in names, key, value, f"one of {', '.join(names)}")

    @property
    def micro_batch(self) -> int:
        """Sequences that are computed at once."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def for_rows(self, rows: int) -> TrainingConfig:
        """The same with the steps that its epochs of so many sequences take."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, math.ceil(self.epochs * rows / self.batch_size)))


def fine_tuning(context_length: int, *, lora: bool) -> TrainingConfig:
    """What works for a model of 124M parameters; `paced` completes it.

    The figures lie within those of nanoGPT's, TRL's and litgpt's recipes, and of Hu et al. 2021
    for LoRA.
    """
    return TrainingConfig(
        epochs=3.0,
        batch_size=max(1, _TOKENS_A_STEP // context_length),
        learning_rate=2e-4 if lora else 5e-5,
        weight_decay=0.01,
        beta2=0.999,
        patience=5,
    )


def paced(settings: TrainingConfig, rows: int, given: frozenset[str]) -> TrainingConfig:
    """Settings of fine-tuning whose pace suits the number of sequences, unless `given`.

    Warm-up takes 5 % of the steps, at least 10 and at most half; the learning rate falls to a
    tenth; there are four validations an epoch.
    """
    settings = settings.for_rows(rows)
    steps, an_epoch = settings.steps, rows / settings.batch_size
    defaults = {
        "warmup_steps": min(max(10, steps // 20), steps // 2),
        "eval_interval": min(500, max(1, round(an_epoch / _VALIDATIONS_AN_EPOCH))),
        "min_learning_rate": settings.learning_rate / 10,
    }
    chosen = {name: value for name, value in defaults.items() if name not in given}
    return replace(settings, **chosen)  # type: ignore[arg-type]
