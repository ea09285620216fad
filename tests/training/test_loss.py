"""The loss in parts equals that of all logits at once, and takes no more memory than it says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import random_model
from torch import Tensor

from gpt2cli.config.model import ModelConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.training import loss
from gpt2cli.training.batches import Epochs
from gpt2cli.training.loss import summed_loss
from gpt2cli.training.packing import Batch, pack
from gpt2cli.training.tokens import Tokens

B, T, C, V = 2, 15, 8, 50


def numbers(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets and mask."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, C, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(V, C, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, V, (B, T), generator=generator)
    return hidden, head, targets, torch.rand(B, T, generator=generator) < 0.6


@pytest.mark.parametrize("rows", [1, 4, 15, 1000])
@pytest.mark.parametrize("is_masked", [False, True])
def test_it_equals_cross_entropy_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, rows: int, is_masked: bool
) -> None:
    monkeypatch.setattr(loss, "LOGITS_BYTES", rows * V * 8)
    hidden, head, targets, mask = numbers()
    kept = mask if is_masked else torch.ones_like(mask)
    expected = F.cross_entropy((hidden @ head.T)[kept], targets[kept], reduction="sum")
    wanted = torch.autograd.grad(expected / 3, (hidden, head))
    total, count = summed_loss(hidden, head, targets, mask if is_masked else None)
    assert count == int(kept.sum())
    assert torch.allclose(total, expected, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(total / 3, (hidden, head)), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_a_padded_head_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets, mask = numbers()
    plain, _ = summed_loss(hidden, head, targets, mask)
    wanted = torch.autograd.grad(plain, (hidden, head))
    monkeypatch.setattr(loss, "MULTIPLES", {"cpu": 64})
    padded, _ = summed_loss(hidden, head, targets, mask)
    assert torch.allclose(padded, plain, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(padded, (hidden, head)), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_logits_that_overflow_an_exponential_are_no_trouble() -> None:
    hidden, head, targets, _ = numbers(torch.float32)
    total, _ = summed_loss(hidden * 1000, head, targets)
    expected = F.cross_entropy((hidden * 1000 @ head.T).flatten(0, 1), targets.flatten())
    assert total.item() / targets.numel() == pytest.approx(expected.item(), rel=1e-5)


def test_only_what_is_learned_gets_gradients() -> None:
    hidden, head, targets, mask = numbers()
    summed_loss(hidden, head.detach(), targets, mask)[0].backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert head.grad is None
    assert not hidden.grad[~mask].any()
    with torch.no_grad():
        total, count = summed_loss(hidden, head, targets)
    assert not total.requires_grad
    assert count == B * T
    nothing, count = summed_loss(hidden, head, targets, torch.zeros_like(mask))
    assert (nothing.item(), count) == (0, 0)
    nothing.backward()  # type: ignore[no-untyped-call]
    assert head.grad is not None
    assert not head.grad.any()


def test_under_autocast_sums_are_in_fp32_and_gradients_near() -> None:
    hidden, head, targets, _ = numbers(torch.float32)
    exact, _ = summed_loss(hidden, head, targets)
    wanted = torch.autograd.grad(exact, (hidden, head))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = summed_loss(hidden, head, targets)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.01)
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, head)), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999


def learn(model: GPT2, batches: list[Batch], targets: int) -> float:
    """Gradients of the mean loss over all targets, accumulated batch by batch. → the mean"""
    mean = 0.0
    for batch in batches:
        ids = torch.from_numpy(batch.ids)
        mask, segments = (
            None if a is None else torch.from_numpy(a) for a in (batch.mask, batch.segments)
        )
        hidden = model.hidden(ids[:, :-1], segments=segments)
        total, _ = summed_loss(hidden, model.token_embedding.weight, ids[:, 1:], mask)
        (total / targets).backward()  # type: ignore[no-untyped-call]
        mean += total.item() / targets
    return mean


def test_eight_batches_of_one_row_are_one_of_eight(tiny_config: ModelConfig) -> None:
    generator = np.random.default_rng(0)
    texts = generator.integers(1, 60, 30)
    prompts = generator.integers(0, 2, 30) * generator.integers(1, 20, 30)
    bounds = np.cumsum([1, *(prompts + texts)])
    ids, none = generator.integers(0, 300, bounds[-1]), np.zeros(30, int)
    tokens = Tokens(ids, bounds, prompts, none, none, None, 0, "", Path())
    batches = Epochs(pack(tokens, np.arange(30), tiny_config.context_length), 8, seed=0)
    batch = batches.batch(0)
    counts = [part.targets for part in batch.micro(1)]
    assert len(set(counts)) > 3
    models = [
        random_model(replace(tiny_config, drop_rate=0.0)).requires_grad_(True) for _ in range(3)
    ]
    targets = batches.targets(0)
    means = [
        learn(model, list(batch.micro(size)), targets)
        for model, size in zip(models, (8, 1, 3), strict=True)
    ]
    assert means == pytest.approx([means[0]] * 3, rel=1e-6)
    for name, p in models[0].named_parameters():
        assert p.grad is not None
        for other in models[1:]:
            gradient = other.get_parameter(name).grad
            assert gradient is not None
            assert (gradient - p.grad).abs().max() <= 1e-6 * max(1, p.grad.abs().max()), name


def test_its_memory_is_bounded() -> None:
    """2048 tokens of GPT-2's vocabulary have 412 MB of logits, and as much again of gradients."""
    script = """
import torch
from gpt2cli.system.machine import peak_memory
from gpt2cli.training.loss import summed_loss
def run(tokens):
    hidden = torch.ones(1, tokens, 16, requires_grad=True)
    summed_loss(hidden, head, torch.ones(1, tokens, dtype=torch.long))[0].backward()
head = torch.ones(50257, 16, requires_grad=True)
run(8)  # what libraries take
before = peak_memory()
run(2048)
print(peak_memory() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) <= 1.05 * loss.LOGITS_BYTES
