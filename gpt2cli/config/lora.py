"""What a low-rank adapter trains, in five numbers and names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2cli.config.fields import require
from gpt2cli.errors import ConfigError, did_you_mean

# The matrices of a block: OpenAI's names, which PEFT uses, and those of `model.gpt2`.
MATRICES = {
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank updates of the matrices that `targets` name, by either name or the end of one.

    They are scaled by alpha / rank, or with `rslora` by alpha / √rank. `dropout` acts on what
    they read.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = tuple(MATRICES)
    rslora: bool = False

    def __post_init__(self) -> None:
        require(0 < self.rank <= 10**6, "rank", self.rank, "at least 1")
        require(0 < self.alpha < math.inf, "alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require(bool(self.targets), "targets", self.targets, "at least one matrix")
        for target in self.targets:
            if not _named(target):
                names = [name for pair in MATRICES.items() for name in pair]
                raise ConfigError(
                    f"targets has {target!r}, which is none of {', '.join(MATRICES)}"
                    f"{did_you_mean(target, names)}",
                    "targets",
                )

    @property
    def matrices(self) -> tuple[str, ...]:
        """The targets by the names of `model.gpt2`; "c_proj" is two of them."""
        chosen = {ours for target in self.targets for ours in _named(target)}
        return tuple(ours for ours in MATRICES.values() if ours in chosen)


def _named(target: str) -> list[str]:
    return [
        ours
        for theirs, ours in MATRICES.items()
        if any(f".{name}".endswith(f".{target}") for name in (theirs, ours))
    ]
