"""AdamW, and how fast it learns at each step.

Schedules: a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983), or warm-up, stable, decay (Hu et
al. 2024, "MiniCPM", arXiv:2404.06395), of which only the last part depends on where a run ends.
"""

from __future__ import annotations

import math

import torch

from gpt2cli.config.training import TrainingConfig
from gpt2cli.model.gpt2 import GPT2

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
    """AdamW over what is trained, that decays matrices and leaves biases and norms alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
