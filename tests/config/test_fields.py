"""Settings from parsed files: keys and types are checked, and the source is named."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2cli.config.fields import build
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError

BASE: dict[str, Any] = {
    "vocab_size": 100,
    "context_length": 16,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
}
TINY = ModelConfig(**BASE)


def test_build_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^here: missing vocab_size, .*n_layers$"):
        build(ModelConfig, {}, "here")
    assert build(ModelConfig, BASE, "here") == TINY
