"""Settings of sampling have ranges."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("temperature", [0, 0.01, 1, 100], [-0.01, float("inf"), float("nan")]),
        ("top_k", [None, 1, 10**6], [0, -1]),
        ("top_p", [None, 1e-9, 0.5, 1], [0, 1.001, -1, float("nan")]),
        ("min_p", [None, 0, 0.5, 1], [-0.01, 1.001, float("nan")]),
        ("repetition_penalty", [None, 0.5, 1, 2], [0, -1, float("inf"), float("nan")]),
    ],
)
def test_sampling_settings_have_ranges(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(SamplingConfig(**{key: value}), key) == value
    for value in bad:
        with pytest.raises(ConfigError, match=f"{key} must be .*, not {value!r}"):
            SamplingConfig(**{key: value})
