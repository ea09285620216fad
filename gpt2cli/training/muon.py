"""Muon: momentum whose matrices are made orthogonal, for the matrices of the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025, "Muon is scalable for LLM
training" (arXiv:2502.16982), by which AdamW's learning rate and weight decay suit it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

_MOMENTUM = 0.95
_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at 0, where most singular values are
_RMS = 0.2  # of AdamW's updates


class Muon(torch.optim.AdamW):
    """Muon for the parameters of groups with "orthogonal" true, and AdamW for all others.

    The orthogonal ones are matrices (in, out); one of `parts` next to each other along the outputs,
    as queries, keys and values are, is that many matrices. Products are computed in `dtype`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> None:
        super().__init__(groups, **settings)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all that have gradients; those of orthogonal ones are then gone."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                self._update(group)
        return super().step(closure)

    def _update(self, group: dict[str, Any]) -> None:
        alike: defaultdict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - _MOMENTUM)
            ahead = p.grad.lerp_(momentum, _MOMENTUM)  # Nesterov's
            p.mul_(1 - group["lr"] * group["weight_decay"])
            parts = group["parts"]
            for part, update in zip(p.chunk(parts, 1), ahead.chunk(parts, 1), strict=True):
                alike[part.shape].append((part, update))
            p.grad = None
        for shape, pairs in alike.items():
            updates = orthogonal(torch.stack([update for _, update in pairs]).to(self._dtype))
            scale = group["lr"] * _RMS * math.sqrt(max(shape))
            for (part, _), update in zip(pairs, updates, strict=True):
                part.sub_(update, alpha=scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each U S Vᵀ: all singular values near 1. (N, in, out) → the same

    Newton and Schulz's iteration with a quintic polynomial, which needs only products.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
