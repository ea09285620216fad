"""What a GPT-2 is, in eight numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2cli.config.fields import require, require_size


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture, with the field's names for its sizes.

    Raises `ConfigError`, naming key and value, for sizes that no GPT-2 can have.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float = 0.1
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            require_size(key, getattr(self, key), 1)
        require(
            self.emb_dim % self.n_heads == 0,
            "emb_dim",
            self.emb_dim,
            f"a multiple of n_heads ({self.n_heads})",
        )
        require(0 <= self.drop_rate < 1, "drop_rate", self.drop_rate, "at least 0 and below 1")
        require(
            0 < self.layer_norm_eps < math.inf, "layer_norm_eps", self.layer_norm_eps, "above 0"
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head, D = C / H."""
        return self.emb_dim // self.n_heads
