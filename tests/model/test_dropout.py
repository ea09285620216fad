"""Dropout as PyTorch's does it, with fewer random numbers."""

from __future__ import annotations

import pytest
import torch

from gpt2cli.model.dropout import Dropout


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1001, 999), (3,)])
def test_so_many_are_dropped_and_the_rest_scaled(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(p)(x)
    assert set(y.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}
    if x.numel() > 1000:
        assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.002)
        rows, columns = (y == 0).float().mean(0), (y == 0).float().mean(1)
        assert rows.std().item() == pytest.approx((p * (1 - p) / 1001) ** 0.5, rel=0.1)
        assert columns.std().item() == pytest.approx((p * (1 - p) / 999) ** 0.5, rel=0.1)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    cut = (Dropout(0.5)(torch.ones(1 << 20)) == 0).float() - 0.5
    for distance in range(1, 9):
        assert abs((cut[distance:] * cut[:-distance]).mean().item()) < 0.001


def test_the_seed_decides_and_inference_drops_nothing() -> None:
    layer, x = Dropout(0.5), torch.randn(64)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x
