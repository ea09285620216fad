"""Settings of training have ranges."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("steps", [1], [0, -1]),
        ("batch_size", [1], [0]),
        ("eval_interval", [1], [0]),
        ("learning_rate", [1e-9], [0, -1.0, float("nan")]),
        ("grad_clip", [1e-9], [0, float("nan")]),
        ("min_learning_rate", [0], [-1e-9, float("nan")]),
        ("warmup_steps", [0], [-1]),
        ("weight_decay", [0], [-0.1, float("nan")]),
        ("seed", [0], [-1]),
        ("beta1", [0, 0.999], [1, -0.1, float("nan")]),
        ("beta2", [0, 0.999], [1, -0.1, float("nan")]),
        ("val_fraction", [0.01, 0.99], [0, 1, float("nan")]),
    ],
)
def test_training_settings_have_ranges(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(TrainingConfig(**{key: value}), key) == value
    for value in bad:
        with pytest.raises(ConfigError, match=f"{key} must be .*, not {value!r}"):
            TrainingConfig(**{key: value})
