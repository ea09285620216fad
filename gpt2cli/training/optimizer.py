"""AdamW, and how fast it learns at each step.

Schedules: a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983), or warm-up, stable, decay (Hu et
al. 2024, "MiniCPM", arXiv:2404.06395), of which only the last part depends on where a run ends.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from gpt2cli.config.training import TrainingConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.training.muon import Muon

DECAY = 0.65  # of all steps, in which "wsd" falls


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Linear warm-up, then down to the minimum at the last step, as the schedule says."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    height = settings.learning_rate - settings.min_learning_rate
    if settings.schedule == "wsd":
        return settings.min_learning_rate + height * min(1.0, (1 - progress) / DECAY)
    return settings.min_learning_rate + height * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: GPT2, settings: TrainingConfig) -> torch.optim.AdamW:
    """What updates all that is trained: it decays matrices and leaves biases and norms alone.

    AdamW, or with "muon" for the matrices of the blocks that. Raises `UsageError` where there are
    none to train.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    if settings.optimizer == "muon":
        for ending, parts in (
            ("qkv.weight", 3),
            ("out.weight", 1),
            (".up.weight", 1),
            (".down.weight", 1),
        ):
            names = [name for name in trained if name.endswith(ending)]
            matrices = [trained.pop(name) for name in names]
            groups.append({"params": matrices, "orthogonal": True, "parts": parts})
    groups.append({"params": [p for p in trained.values() if p.dim() >= 2]})
    groups.append({"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0})
    kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
