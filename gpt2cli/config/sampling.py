"""How the next token is chosen from the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpt2cli.config.fields import require
from gpt2cli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the next token is chosen from the logits; `None` switches a rule off.

    `temperature` 0 means greedy. See `gpt2cli.sampling.sampler` for the rules and their order.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    no_repeat_ngram: int | None = None
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float = 0.1
    mirostat_tau: float | None = None
    mirostat_eta: float = 0.1

    def __post_init__(self) -> None:
        for key, holds, rule in _SAMPLING_RANGES:
            if (value := getattr(self, key)) is not None:
                require(holds(value), key, value, rule)
        clash = [key for key in _NOT_WITH_MIROSTAT if getattr(self, key) is not None]
        if self.mirostat_tau is not None and clash:
            raise ConfigError(
                f"mirostat_tau takes the place of {clash[0]}; leave one of them out",
                "mirostat_tau",
                clash[0],
            )

    def updated(self, **given: float | int | None) -> SamplingConfig:
        """These settings, replaced by those given that are not None.

        Mirostat, when given, replaces the rules that it cannot be combined with.
        """
        given = {key: value for key, value in given.items() if value is not None}
        if "mirostat_tau" in given:
            given = dict.fromkeys(_NOT_WITH_MIROSTAT) | given
        return replace(self, **given)  # type: ignore[arg-type]


_NOT_WITH_MIROSTAT = ("top_k", "top_p", "min_p", "typical_p", "xtc_probability")


_SAMPLING_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("temperature", lambda v: 0 <= v < math.inf, "0 (greedy) or a positive number"),
    ("top_k", lambda v: v >= 1, "at least 1"),
    ("top_p", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("min_p", lambda v: 0 <= v <= 1, "between 0 and 1"),
    ("repetition_penalty", lambda v: 0 < v < math.inf, "a positive number (1 is off)"),
    ("frequency_penalty", lambda v: -2 <= v <= 2, "between -2 and 2 (0 is off)"),
    ("presence_penalty", lambda v: -2 <= v <= 2, "between -2 and 2 (0 is off)"),
    ("dry_multiplier", lambda v: 0 <= v < math.inf, "at least 0 (0 is off)"),
    ("dry_base", lambda v: 1 <= v < math.inf, "at least 1"),
    ("dry_allowed_length", lambda v: v >= 1, "at least 1"),
    ("no_repeat_ngram", lambda v: v >= 1, "at least 1"),
    ("typical_p", lambda v: 0 < v <= 1, "above 0 and at most 1 (1 is off)"),
    ("xtc_probability", lambda v: 0 <= v <= 1, "between 0 (off) and 1"),
    # Above 0.5 no two tokens can reach it, so the rule would do nothing.
    ("xtc_threshold", lambda v: 0 < v <= 0.5, "above 0 and at most 0.5"),
    ("mirostat_tau", lambda v: 0 < v < math.inf, "a positive number of bits"),
    ("mirostat_eta", lambda v: 0 < v <= 1, "above 0 and at most 1"),
)

USUAL = SamplingConfig(temperature=0.8, top_p=0.95)  # for a model whose config names no other
DRAFT_TOKENS = 7  # and the token before them: 8 rows, which the native engine multiplies at once
LENGTH_PENALTY = 1.0  # of beam search: neither short nor long texts are preferred
