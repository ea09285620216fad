"""Sizes of a model have ranges."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError

SIZES = {"vocab_size": 100, "context_length": 16, "emb_dim": 12, "n_heads": 3, "n_layers": 2}


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("vocab_size", [1, 10**7], [0, -1, 10**7 + 1]),
        ("context_length", [1, 10**8], [0, 10**8 + 1]),
        ("emb_dim", [3, 12], [0, 13]),
        ("n_heads", [1, 12], [0, 5]),
        ("n_layers", [1, 10**4], [0, 10**4 + 1]),
        ("drop_rate", [0.0, 0.99], [1.0, -0.1, float("nan")]),
        ("layer_norm_eps", [1e-12], [0.0, float("inf"), float("nan")]),
    ],
)
def test_sizes_have_ranges(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        config = ModelConfig(**{**SIZES, key: value})
        assert getattr(config, key) == value
        assert config.head_dim * config.n_heads == config.emb_dim
    for value in bad:
        with pytest.raises(ConfigError, match="must be"):
            ModelConfig(**{**SIZES, key: value})
