"""Runs of training a tiny model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers import TEXT

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.training import run as runs
from gpt2cli.training import trainer
from gpt2cli.training.state import Plan

PLAN = Plan(
    ModelConfig(300, 16, emb_dim=24, n_heads=2, n_layers=2, drop_rate=0.1, qkv_bias=False),
    TrainingConfig(steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, eval_interval=5),
)


def with_settings(**settings: Any) -> Plan:
    """`PLAN` with other settings of training."""
    return replace(PLAN, training=replace(PLAN.training, **settings))


def open_run(
    directory: Path, plan: Plan = PLAN, text: str = TEXT, resume: bool = False
) -> AbstractContextManager[trainer.Trainer]:
    return runs.open_run(plan, text, directory, resume=resume)


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
