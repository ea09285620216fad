"""The schedule of the learning rate, and what decays."""

from __future__ import annotations

import pytest
from helpers import random_model
from runs import PLAN

from gpt2cli.config.training import TrainingConfig
from gpt2cli.training.optimizer import learning_rate, make_optimizer


def test_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    settings = TrainingConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.2)
    rates = [learning_rate(step, settings) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    half = 10 + 99 / 2
    assert learning_rate(int(half), settings) == pytest.approx(0.6, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay() -> None:
    model = random_model(PLAN.model).requires_grad_(True)
    groups = make_optimizer(model, PLAN.training).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.dim() == 2), name
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
