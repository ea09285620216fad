"""Muon: orthogonal updates for the matrices of the blocks, AdamW for the rest."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers import random_model
from runs import PLAN

from gpt2cli.training.muon import Muon, orthogonal
from gpt2cli.training.optimizer import make_optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_singular_values_become_about_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonal(matrices.to(dtype)).double()
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = torch.diagonal(u.mT @ result @ v.mT, dim1=1, dim2=2)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert (result - u @ (values[:, :, None] * v)).abs().max() < 0.03


def test_a_step_is_that_of_the_formula() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 24, generator=torch.Generator().manual_seed(1)))
    before, gradient = weight.detach().clone(), torch.randn(6, 24)
    optimizer = Muon(
        [{"params": [weight], "orthogonal": True, "parts": 3}], lr=0.1, weight_decay=0.5
    )
    weight.grad = gradient.clone()
    optimizer.step()
    momentum = 0.05 * gradient
    ahead = 0.05 * gradient + 0.95 * momentum
    updates = [orthogonal(part[None])[0].float() for part in ahead.chunk(3, 1)]
    scale = 0.2 * 8**0.5  # of matrices of 6 by 8
    expected = before * (1 - 0.1 * 0.5) - 0.1 * scale * torch.cat(updates, 1)
    torch.testing.assert_close(weight.detach(), expected)


def test_all_but_the_matrices_of_blocks_are_left_to_adamw() -> None:
    settings = replace(PLAN.training, optimizer="muon")
    model = random_model(PLAN.model).requires_grad_(True)
    twin = copy.deepcopy(model)
    for one in (model, twin):
        one(torch.arange(8)[None]).square().mean().backward()
    muon, adamw = make_optimizer(model, settings), make_optimizer(twin, PLAN.training)
    muon.step()
    adamw.step()
    matrices = ("qkv.weight", "out.weight", "up.weight", "down.weight")
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q) != name.endswith(matrices), name
