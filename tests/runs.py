"""Runs of training a tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from helpers import TEXT

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.training import run as runs
from gpt2cli.training import trainer
from gpt2cli.training.packing import Rows, pack
from gpt2cli.training.state import Plan
from gpt2cli.training.tokens import Tokens

PLAN = Plan(
    ModelConfig(300, 16, emb_dim=24, n_heads=2, n_layers=2, drop_rate=0.1, qkv_bias=False),
    TrainingConfig(steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, eval_interval=5),
)


def with_settings(**settings: Any) -> Plan:
    """`PLAN` with other settings of training."""
    return replace(PLAN, training=replace(PLAN.training, **settings))


_TEXTS = TemporaryDirectory()


def with_text(plan: Plan, text: str) -> Plan:
    """A plan that learns from a text, which is the same file for the same text."""
    path = Path(_TEXTS.name) / f"{hashlib.sha256(text.encode()).hexdigest()}.txt"
    if not path.exists():
        path.write_bytes(text.encode())
    return replace(plan, data=replace(plan.data, files=(str(path),)))


def open_run(
    directory: Path, plan: Plan = PLAN, text: str = TEXT, resume: bool = False
) -> AbstractContextManager[trainer.Trainer]:
    return runs.open_run(with_text(plan, text), directory, resume=resume)


def windows(ids: Sequence[int], context_length: int) -> Rows:
    """A text as windows of one context, to predict each of its tokens but the first."""
    none = np.zeros(1, int)
    bounds = np.array([1, len(ids)])
    tokens = Tokens(np.asarray(ids), bounds, none, none, none, None, 0, "", Path())
    return pack(tokens, np.arange(1), context_length)


def train(
    directory: Path,
    plan: Plan = PLAN,
    text: str = TEXT,
    resume: bool = False,
    stop_after: int = 10**9,
) -> tuple[trainer.Trainer, list[trainer.Report]]:
    """A run and all that it reported, to its end or a step."""
    with open_run(directory, plan, text, resume) as run:
        return run, list(run.run(should_stop=lambda: run.step >= stop_after))
