"""The order in which the rules of `sampling` and `penalties` apply, and what they remember.

    the text so far     logit bias → repetition penalty → frequency and presence penalty
                        → DRY → no repeated n-gram → no end before min_tokens
    a constraint        what may come next at all
    these logits        → temperature (0: the best token, and nothing below applies)
                        → top-k → top-p → min-p → typical-p → XTC, or mirostat
    chance              → draw

Rules that transformers has are in its order, so its settings carry over; XTC comes last,
as its author has it, because it applies to what the others leave.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device

from gpt2cli.arrays import Array, array_namespace
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling import penalties
from gpt2cli.sampling.constraint import Matcher
from gpt2cli.sampling.rules import (
    draw,
    draw_or_keep,
    exclude_top_choices,
    greedy,
    keep_min_p,
    keep_surprise,
    keep_top_k,
    keep_top_p,
    keep_typical,
    next_limit,
    scale_by_temperature,
    uniforms,
)

Texts = Sequence[Sequence[int]]
Rule = Callable[[Array, Texts], Array]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A token that a draft proposes, and the logits (1, V) that it was drawn from, if any."""

    token: int
    logits: Array | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """The effect of one rule on the candidates of one row.

    `candidates` are how many tokens it left; `top` lists the ids that were or became most
    probable, each with its probability before and after.
    """

    rule: str
    candidates: int
    top: list[tuple[int, float, float]]


class Sampler:
    """Chooses the next token of B texts, each with random numbers of its own.

    The first `prompt_length` tokens of a text are the prompt. `end` is the token that may
    not come before `min_tokens` others; `breakers` are the tokens that DRY stops at.
    `constraint` is a rule that leaves only the tokens that may come next.
    """

    def __init__(
        self,
        config: SamplingConfig,
        random: np.random.Generator,
        prompt_length: int = 0,
        *,
        bias: penalties.Changes | None = None,
        end: int | None = None,
        min_tokens: int = 0,
        breakers: Collection[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self._config = config
        self._random = [random]
        self._prompt_length = prompt_length
        self._bias = bias or {}
        self._end, self._min_tokens = end, min_tokens
        self._breakers = breakers
        self._seen: Array | None = None
        self._numbers: Iterator[Array] | None = None
        self._uniforms: Array = None  # (1, B), or (2, B) with XTC, for this token
        self._limit: Array | None = None  # of surprise, for mirostat
        self._before: Array = None  # the logits that mirostat was given
        constraints = [] if matcher is None else [("constraint", matcher.mask)]
        self._rules = [*self._history_rules(), *constraints, *self._rules_for_these_logits()]

    def choose(self, logits: Array, text: Sequence[int], proposal: Proposal | None = None) -> int:
        """The next token, or V where none is left. (1, V)

        A proposal changes how a token is drawn, not its distribution.
        """
        texts = [text]
        ids, _ = self._pick(logits, texts, proposal)
        with np.errstate(all="ignore"):
            if self._seen is not None:
                self._seen = penalties.mark_chosen(self._seen, ids)
            if self._config.mirostat_tau is not None and self._limit is not None:
                self._remember_surprise(ids)
        return int(ids[0])

    def propose(self, logits: Array, text: Sequence[int]) -> Proposal | None:
        """Draw by the same rules from a draft's logits (1, V), for a text that may be rejected.

        None where no token is left.
        """
        seen, self._seen = self._seen, None
        ids, drawn_from = self._pick(logits, [text])
        self._seen = seen
        (token,) = ids.tolist()
        return Proposal(token, drawn_from) if token < logits.shape[1] else None

    def _pick(
        self, logits: Array, texts: Texts, proposal: Proposal | None = None
    ) -> tuple[Array, Array]:
        """Tokens, and the logits that they were drawn from."""
        self._draw_uniforms(logits)
        # −∞ − (−∞), and overflow at a temperature near 0, are intended.
        with np.errstate(all="ignore"):
            for _, rule in self._rules:
                logits = rule(logits, texts)
            if self._config.temperature == 0:
                return _best(logits), logits
            if proposal is None:
                return draw(logits, self._uniforms[0]), logits
            xp, draft = array_namespace(logits), proposal.logits
            proposed = xp.asarray([proposal.token], device=device(logits))
            if draft is None:  # as if drawn where there was no other
                every = xp.arange(logits.shape[1], device=device(logits))
                draft = xp.where(every == proposed[:, None], 0.0, -xp.inf)
            return draw_or_keep(logits, proposed, draft, self._uniforms[0]), logits

    def explain(self, logits: Array, text: Sequence[int], top: int = 5) -> list[Stage]:
        """What each rule does to the candidates, the model's own first. (1, V)"""
        texts = [text]
        self._draw_uniforms(logits)
        stages: list[Stage] = []
        with np.errstate(all="ignore"):
            before = after = _probabilities(logits)
            stages.append(_stage("the model", before, after, top))
            for name, rule in self._rules:
                logits = rule(logits, texts)
                before, after = after, _probabilities(logits)
                stages.append(_stage(name, before, after, top))
        return stages

    def _history_rules(self) -> list[tuple[str, Rule]]:
        c, start = self._config, self._prompt_length
        rules: list[tuple[str, Rule]] = []
        if self._bias:
            rules.append(("bias", lambda x, t: penalties.add(x, [self._bias] * len(t))))
        if c.repetition_penalty is not None:
            rules.append((f"repetition penalty {c.repetition_penalty:g}", self._repetition))
        frequency, presence = c.frequency_penalty or 0.0, c.presence_penalty or 0.0
        if frequency or presence:

            def count(row: Sequence[int]) -> penalties.Changes:
                return penalties.count_penalties(row[start:], frequency, presence)

            rules.append((f"frequency {frequency:g}, presence {presence:g}", _for_each(count)))
        if multiplier := c.dry_multiplier:

            def dry(row: Sequence[int]) -> penalties.Changes:
                return penalties.dry_penalties(
                    row, multiplier, c.dry_base, c.dry_allowed_length, self._breakers
                )

            rules.append((f"DRY {multiplier:g}", _for_each(dry)))
        if (n := c.no_repeat_ngram) is not None:
            rules.append(
                (f"no repeated {n}-gram", _for_each(lambda row: penalties.ngram_bans(row, n)))
            )
        if self._min_tokens and (end := self._end) is not None:

            def ban_end(row: Sequence[int]) -> penalties.Changes:
                return {end: -np.inf} if len(row) - start < self._min_tokens else {}

            rules.append((f"no end before {self._min_tokens} tokens", _for_each(ban_end)))
        return rules

    def _rules_for_these_logits(self) -> list[tuple[str, Rule]]:
        c = self._config
        if c.temperature == 0:
            return []
        rules: list[tuple[str, Rule]] = [
            (
                f"temperature {c.temperature:g}",
                lambda x, _: scale_by_temperature(x, c.temperature),
            )
        ]
        for name, value, keep in (
            ("top-k", c.top_k, keep_top_k),
            ("top-p", c.top_p, keep_top_p),
            ("min-p", c.min_p, keep_min_p),
            ("typical-p", c.typical_p, keep_typical),
        ):
            if value is not None:
                rules.append((f"{name} {value:g}", _with_value(keep, value)))
        if c.xtc_probability:
            rules.append((f"XTC {c.xtc_threshold:g}", self._exclude_top_choices))
        if c.mirostat_tau is not None:
            rules.append((f"mirostat {c.mirostat_tau:g}", self._mirostat))
        return rules

    def _draw_uniforms(self, logits: Array) -> None:
        # A rule that is off draws nothing, so a seed gives the same text as without the rule.
        if self._numbers is None:
            count = 2 if self._config.xtc_probability else 1
            self._numbers = uniforms(self._random, logits, count)
        self._uniforms = next(self._numbers)

    def _repetition(self, logits: Array, texts: Texts) -> Array:
        if self._seen is None:
            self._seen = penalties.mark_seen(logits, texts)
        penalty = self._config.repetition_penalty
        assert penalty is not None
        return penalties.penalise_repetition(logits, self._seen, penalty)

    def _exclude_top_choices(self, logits: Array, _: Texts) -> Array:
        threshold, probability = self._config.xtc_threshold, self._config.xtc_probability
        assert probability is not None
        return exclude_top_choices(logits, threshold, probability, self._uniforms[1])

    def _mirostat(self, logits: Array, _: Texts) -> Array:
        xp, tau = array_namespace(logits), self._config.mirostat_tau
        assert tau is not None
        if self._limit is None:  # the authors' beginning
            self._limit = xp.full(len(logits), 2 * tau, dtype=logits.dtype, device=device(logits))
        self._before = logits
        return keep_surprise(logits, self._limit)

    def _remember_surprise(self, ids: Array) -> None:
        c, xp = self._config, array_namespace(self._before)
        assert c.mirostat_tau is not None
        real = xp.clip(ids, 0, self._before.shape[1] - 1)
        self._limit = next_limit(self._before, real, self._limit, c.mirostat_tau, c.mirostat_eta)


def choose(logits: Array, samplers: Sequence[Sampler], texts: Sequence[Sequence[int]]) -> list[int]:
    """The next token of each of B texts."""
    return [
        sampler.choose(logits[i : i + 1], text)
        for i, (sampler, text) in enumerate(zip(samplers, texts, strict=True))
    ]


def _for_each(changes_of: Callable[[Sequence[int]], penalties.Changes]) -> Rule:
    """Turn a rule on rows of ids into a rule on logits."""
    return lambda logits, texts: penalties.add(logits, [changes_of(text) for text in texts])


def _with_value(keep: Callable[[Array, Any], Array], value: float) -> Rule:
    return lambda logits, _: keep(logits, value)


def _best(logits: Array) -> Array:
    """The most probable token of each row, or V where all are −∞ or NaN. (B, V) → (B,)"""
    xp, ids = array_namespace(logits), greedy(logits)
    best = xp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return xp.where(best > -xp.inf, ids, logits.shape[1])


def _probabilities(logits: Array) -> np.ndarray[Any, Any]:
    """The probabilities of the first row, on the host. (B, V) → (V,)"""
    row: np.ndarray[Any, Any] = np.array(logits[0].tolist())
    weights = np.exp(row - row.max())
    return np.asarray(weights / weights.sum())


def _stage(rule: str, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], top: int) -> Stage:
    best = np.argsort(-np.maximum(before, after), kind="stable")[:top].tolist()
    listed = [(i, float(before[i]), float(after[i])) for i in best]
    return Stage(rule, int(np.count_nonzero(after)), listed)
