"""AdamW, and how fast it learns at each step."""

from __future__ import annotations

import math

import torch

from gpt2cli.config.training import TrainingConfig
from gpt2cli.model.gpt2 import GPT2


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to the minimum at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    height = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + height * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: GPT2, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
