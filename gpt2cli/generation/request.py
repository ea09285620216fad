"""What to generate and what comes out: settings and events."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from gpt2cli.config.sampling import LENGTH_PENALTY, SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.sampling.constraint import Constraint

FinishReason = Literal["stop", "length", "eos"]


MOST_LOGPROBS = 100  # upper bound of --logprobs, per token


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What to generate. Sample i draws from its own generator, made of `seed` and i.

    A text ends before a token of `stop_token_ids` as before end-of-text, even with `ignore_eos`.
    Neither these nor a stop string end it before `min_tokens`. `bias` is added to the logits of
    token ids; −∞ bans one. Tokens that contain a text of `dry_breakers` end a sequence for DRY.
    `beams` is for `beam.generate`, which draws nothing and excludes the settings that do; the best
    `samples` beams are the result. A `constraint` alone decides where a text may end.

    With `logprobs` or `prompt_logprobs` each token, or each of the prompt, has its log-probability
    and those of as many of the most probable tokens.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_tokens: int = 100
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    beams: int | None = None
    length_penalty: float = LENGTH_PENALTY
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} must be at least 1, not {value}", name)
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, not {self.seed}", "seed")
        if "" in self.stop:
            raise UsageError("a stop string must not be empty", "stop")
        if "" in self.dry_breakers:
            raise UsageError("a DRY breaker must not be empty")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(
                f"min_tokens must be between 0 and max_tokens ({self.max_tokens}), "
                f"not {self.min_tokens}",
                "min_tokens",
                "max_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None and not 0 <= count <= MOST_LOGPROBS:
                raise UsageError(f"{name} must be between 0 and {MOST_LOGPROBS}, not {count}", name)
        if self.beams is not None:
            self._check_beams(self.beams)
        if self.constraint is not None:
            names = ("stop", "stop_token_ids", "ignore_eos", "min_tokens", "beams")
            if clash := [name for name in names if getattr(self, name)]:
                raise UsageError(
                    f"a constraint and {clash[0]} cannot go together; leave one of them out",
                    clash[0],
                )

    def _check_beams(self, beams: int) -> None:
        if beams < 1:
            raise UsageError(f"beams must be at least 1, not {beams}", "beams")
        if not math.isfinite(self.length_penalty):
            raise UsageError(
                f"length_penalty must be a number, not {self.length_penalty}", "length_penalty"
            )
        if self.samples > beams:
            raise UsageError(f"{beams} beams give at most {beams} samples, not {self.samples}")
        greedy = SamplingConfig(temperature=0)
        names = [f.name for f in fields(greedy)]
        clash = [n for n in names if getattr(self.sampling, n) != getattr(greedy, n)]
        others = ("stop", "stop_token_ids", "bias", "min_tokens")
        clash += [name for name in others if getattr(self, name)]
        clash += [n for n in ("logprobs", "prompt_logprobs") if getattr(self, n) is not None]
        if clash:
            raise UsageError(
                f"beams and {clash[0]} cannot go together; leave one of them out", "beams", clash[0]
            )


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and its log-probability by the model, before any rule of sampling; in nats."""

    token: str
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ChosenLogprob(Logprob):
    """The log-probability of a chosen token, and of the most probable ones, best first.

    `rank` is its place among all tokens, 1 for the most probable; None where nobody has counted.
    """

    top: tuple[Logprob, ...] = ()
    rank: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """What files of results hold."""
        found = asdict(self)
        del found["rank"]
        return found


@dataclass(frozen=True, slots=True)
class Event:
    """One more token of one sample.

    `text` is what can be shown by now: it lags behind where a character is unfinished or a
    stop string may have begun. `token_id` is None when end-of-text, or a token of
    `stop_token_ids`, ended it. There is a `logprob` if the config asks for it. With a constraint,
    `matched` says whether the text has ended as it demands. `prompt_logprobs` come with the first
    event of sample 0 if the config asks for them, one for each token of the prompt; the first,
    which nothing predicts, has none.
    """

    sample: int
    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None
    logprob: ChosenLogprob | None = None
    matched: bool | None = None
    prompt_logprobs: tuple[ChosenLogprob | None, ...] | None = None


def new_seed() -> int:
    """A random seed, short enough to type."""
    return secrets.randbelow(2**31)
