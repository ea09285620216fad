"""AdamW, and how fast it learns at each step.

Schedules: a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983), or warm-up, stable, decay (Hu et
al. 2024, "MiniCPM", arXiv:2404.06395), of which only the last part depends on where a run ends.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from gpt2cli.config.lora import MATRICES
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


def make_optimizer(
    model: GPT2, settings: TrainingConfig, precision: str = "fp32"
) -> torch.optim.AdamW:
    """What updates all that is trained: it decays matrices and leaves biases and norms alone.

    AdamW, or with "muon" that for the matrices of the blocks, in the precision of other products.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    if settings.optimizer == "muon":
        for matrix in MATRICES.values():
            names = [name for name in trained if name.endswith(f"{matrix}.weight")]
            parts = 3 if matrix == "attention.qkv" else 1
            own = [trained.pop(name) for name in names]
            groups.append({"params": own, "orthogonal": True, "parts": parts})
    groups.append({"params": [p for p in trained.values() if p.dim() >= 2]})
    groups.append({"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    common: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "weight_decay": settings.weight_decay,
        "fused": True,
    }
    if settings.optimizer == "muon":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Muon(groups, dtype=dtype, **common)
    return torch.optim.AdamW(groups, **common)
