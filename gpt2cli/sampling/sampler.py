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

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import device

from gpt2cli.arrays import Array, NDArray, array_namespace, in_host_memory, to_device_of
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling import constraint, nucleus, penalties
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

Text = Sequence[int]


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
    """Chooses the next token of one text, with random numbers of its own.

    The first `prompt_length` tokens of the text are the prompt. `ends` are the tokens that
    may not come before `min_tokens` others; `breakers` are the tokens that DRY stops at. `matcher`
    knows which tokens may come next; whoever appends a token to the text tells it.
    """

    def __init__(
        self,
        config: SamplingConfig,
        random: np.random.Generator,
        prompt_length: int = 0,
        *,
        bias: penalties.Changes | None = None,
        ends: Sequence[int] = (),
        min_tokens: int = 0,
        breakers: Collection[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self._config, self._prompt_length, self._breakers = config, prompt_length, breakers
        self._bias, self._matcher = bias or {}, matcher
        self._ends, self._min_tokens = ends, min_tokens if ends else 0
        # A rule that is off draws nothing, so a seed gives the same text as without the rule.
        self._uniforms = uniforms(random, 2 if config.xtc_probability else 1)
        self._limit = 2 * (config.mirostat_tau or 0.0)  # of surprise: the authors' beginning
        # Texts of one kind have the same rules.
        self._kind = (config, bool(self._bias), bool(self._min_tokens), matcher is not None)
        self._history = _history_rules(self)
        self._constraint = [("constraint", _constrain)] if matcher is not None else []
        self._last = _rules_for_these_logits(config)
        others = (config.min_p, config.typical_p, config.mirostat_tau)
        self._is_plain = others == (None,) * 3 and not config.xtc_probability
        usual = self._is_plain and config.temperature > 0 and config.top_k is None
        # Nothing but temperature and top-p, for which there may be a faster `Draw`.
        self._is_usual = usual and not self._history and matcher is None

    def choose(
        self,
        logits: Array,
        text: Text,
        proposal: Proposal | None = None,
        draw: Draw | None = None,
    ) -> int:
        """The next token, or V where none is left. (1, V)

        A proposal changes how a token is drawn, not its distribution.
        """
        if proposal is None:
            return choose(logits, [self], [text], draw)[0]
        picked, _ = _pick(_as_numpy(logits), _Rows([self], [text]), proposal)
        ((token_id, self._limit),) = picked.tolist()
        return int(token_id)

    def propose(self, logits: Array, text: Text) -> Proposal | None:
        """Draw by the same rules from a draft's logits (1, V), for a text that may be rejected.

        None where no token is left.
        """
        picked, drawn_from = _pick(_as_numpy(logits), _Rows([self], [text]))
        token_id = int(picked[0, 0])
        return Proposal(token_id, drawn_from) if token_id < logits.shape[1] else None

    def skip(self, count: int) -> None:
        """Leave out the random numbers of `count` tokens, which were chosen with them before."""
        for _ in range(count):
            next(self._uniforms)

    def explain(self, logits: Array, text: Text, top: int = 5) -> list[Stage]:
        """What each rule does to the candidates, the model's own first. (1, V)"""
        rows, stages = _Rows([self], [text]), list[Stage]()
        numbers = rows.numbers(logits)
        with np.errstate(all="ignore"):
            before = after = _probabilities(logits)
            stages.append(_stage("the model", before, after, top))
            for name, rule in (*self._history, *self._constraint, *self._last):
                logits = rule(logits, rows, numbers)
                before, after = after, _probabilities(logits)
                stages.append(_stage(name, before, after, top))
        return stages

    def _end_ban(self, text: Text) -> penalties.Changes:
        too_early = len(text) - self._prompt_length < self._min_tokens
        return dict.fromkeys(self._ends, -np.inf) if too_early else {}


@dataclass(frozen=True, slots=True)
class _Rows:
    """B texts of one kind, whose next token is chosen in one step."""

    samplers: Sequence[Sampler]
    texts: Sequence[Text]

    def numbers(self, logits: Array) -> Array:
        """New random numbers to draw with and for XTC, and mirostat's limits. (3, B)"""
        drawn = [next(sampler._uniforms) for sampler in self.samplers]
        limits = [sampler._limit for sampler in self.samplers]
        rows = [[row[0] for row in drawn], [row[-1] for row in drawn], limits]
        return to_device_of(logits, np.array(rows))


Rule = Callable[[Array, _Rows, Array], Array]  # (B, V) logits, texts, (3, B) their numbers


class Draw(Protocol):
    """Draws from many rows of logits at once by temperature and top-p; see `nucleus`."""

    def __call__(
        self,
        logits: NDArray,
        rows: Sequence[int],
        temperatures: Sequence[float],
        top_p: Sequence[float],
        uniforms: Sequence[float],
    ) -> list[int]:
        """A token for each of N rows, or V where none is left. (B, V) in float32 → (N,)"""


def choose(
    logits: Array,
    samplers: Sequence[Sampler],
    texts: Sequence[Text],
    draw: Draw | None = None,
) -> list[int]:
    """The next token of each text, or V where none is left. (B, V)

    It is the same as by each sampler's own `choose`, whatever its neighbours. With `draw`, rows
    of the usual settings are left to it.
    """
    logits = _as_numpy(logits)
    if isinstance(logits, np.ndarray):
        constraint.look_ahead([s._matcher for s in samplers if s._matcher is not None])
        usual = _usual(samplers) if draw is not None and logits.dtype == np.float32 else []
        drawn = iter(_drawn(logits, samplers, usual, draw)) if draw and usual else iter(())
        faster = set(usual)
        # Row by row, so that a row stays in the processor's cache.
        rows = enumerate(zip(logits[:, None], samplers, texts, strict=True))
        return [next(drawn) if i in faster else _choose_one(*each) for i, each in rows]
    picked, order = enqueue(logits, samplers, texts)
    return take(picked.tolist(), order, samplers)  # waits for the device


def _usual(samplers: Sequence[Sampler]) -> list[int]:
    """The texts that nothing but temperature and top-p decides about."""
    return [i for i, sampler in enumerate(samplers) if sampler._is_usual]


def _drawn(
    logits: NDArray, samplers: Sequence[Sampler], rows: Sequence[int], draw: Draw
) -> list[int]:
    some = [samplers[i] for i in rows]
    temperatures = [s._config.temperature for s in some]
    top_p = [1.0 if s._config.top_p is None else s._config.top_p for s in some]
    return draw(logits, rows, temperatures, top_p, [next(s._uniforms)[0] for s in some])


def enqueue(
    logits: Array, samplers: Sequence[Sampler], texts: Sequence[Text]
) -> tuple[Array, list[int]]:
    """All of `choose` up to its wait for the device, which works on rows of one kind together.

    Returns a token and mirostat's next limit for each text, (B, 2), and the texts' numbers in
    their order.
    """
    constraint.look_ahead([s._matcher for s in samplers if s._matcher is not None])
    kinds: dict[object, list[int]] = {}
    for i, sampler in enumerate(samplers):
        kinds.setdefault(sampler._kind, []).append(i)
    xp, picked = array_namespace(logits), []
    for numbers in kinds.values():
        rows = _Rows([samplers[i] for i in numbers], [texts[i] for i in numbers])
        index = to_device_of(logits, np.array(numbers))
        some = logits if len(kinds) == 1 else xp.take(logits, index, axis=0)
        picked.append(_pick(some, rows)[0])
    return xp.concat(picked), [i for numbers in kinds.values() for i in numbers]


def take(
    picked: Sequence[Sequence[float]], order: Sequence[int], samplers: Sequence[Sampler]
) -> list[int]:
    """The tokens that `enqueue` has found, text by text; mirostat remembers what it must."""
    chosen = [0] * len(samplers)
    for i, (token_id, limit) in zip(order, picked, strict=True):
        chosen[i], samplers[i]._limit = int(token_id), limit
    return chosen


def _choose_one(logits: NDArray, sampler: Sampler, text: Text) -> int:
    """As `enqueue`, for one text in NumPy, which leaves out what cannot come early. (1, V)"""
    rows, size = _Rows([sampler], [text]), len(logits[0])
    numbers = rows.numbers(logits)
    ids: NDArray | None = None
    with np.errstate(all="ignore"):
        logits = _apply(sampler._history, logits, rows, numbers)
        if (matcher := sampler._matcher) is not None:
            if matcher.count < size // 2:
                ids = matcher.allowed
                logits = logits[:, ids]
            else:
                logits = np.minimum(logits, matcher.limits)
        chosen = _draw_one(logits, rows, numbers) if logits.size else 0
    if chosen == logits.shape[1]:
        return size
    return chosen if ids is None else int(ids[chosen])


def _draw_one(logits: NDArray, rows: _Rows, numbers: NDArray) -> int:
    """As `_finish`, for one text in NumPy. (1, V), V ≥ 1"""
    (sampler,) = rows.samplers
    config = sampler._config
    if config.temperature == 0:
        best = int(logits.argmax())
        return best if logits[0, best] > -np.inf else len(logits[0])
    if sampler._is_plain and logits.dtype == np.float32:
        settings = config.temperature, config.top_k, config.top_p
        return nucleus.draw_one(logits[0], *settings, float(numbers[0, 0]))
    picked, _ = _finish(logits, rows, numbers)
    ((token_id, sampler._limit),) = picked.tolist()
    return int(token_id)


def _pick(logits: Array, rows: _Rows, proposal: Proposal | None = None) -> tuple[Array, Array]:
    """A token and mirostat's next limit for each text, (B, 2), and the logits it was drawn from."""
    numbers, first = rows.numbers(logits), rows.samplers[0]
    # −∞ − (−∞), and overflow at a temperature near 0, are intended.
    with np.errstate(all="ignore"):
        logits = _apply([*first._history, *first._constraint], logits, rows, numbers)
        return _finish(logits, rows, numbers, proposal)


def _apply(rules: Sequence[tuple[str, Rule]], logits: Array, rows: _Rows, numbers: Array) -> Array:
    for _, rule in rules:
        logits = rule(logits, rows, numbers)
    return logits


def _finish(
    logits: Array, rows: _Rows, numbers: Array, proposal: Proposal | None = None
) -> tuple[Array, Array]:
    """What `_pick` returns, of logits that the past and a constraint have changed already."""
    xp, config, last = array_namespace(logits), rows.samplers[0]._config, rows.samplers[0]._last
    before = _apply(last[:-1], logits, rows, numbers)
    logits = _apply(last[-1:], before, rows, numbers)
    if config.temperature == 0:
        ids = _best(logits)
    elif proposal is None:
        ids = draw(logits, numbers[0])
    else:
        ids = _draw_or_keep(logits, proposal, numbers[0])
    limits = numbers[2]
    if (tau := config.mirostat_tau) is not None and config.temperature:
        real = xp.clip(ids, 0, logits.shape[1] - 1)
        limits = next_limit(before, real, limits, tau, config.mirostat_eta)
    return xp.stack([xp.astype(ids, xp.float64), xp.astype(limits, xp.float64)], axis=1), logits


def _draw_or_keep(logits: Array, proposal: Proposal, uniforms: Array) -> Array:
    xp, draft = array_namespace(logits), proposal.logits
    proposed = xp.asarray([proposal.token], device=device(logits))
    if draft is None:  # as if drawn where there was no other
        every = xp.arange(logits.shape[1], device=device(logits))
        draft = xp.where(every == proposed[:, None], 0.0, -xp.inf)
    return draw_or_keep(logits, proposed, draft, uniforms)


def _history_rules(sampler: Sampler) -> list[tuple[str, Rule]]:
    """The rules on the text so far, with their names."""
    c = sampler._config
    rules: list[tuple[str, Rule]] = []
    if sampler._bias:
        rules.append(("bias", _adding(lambda s, _: s._bias)))
    if (penalty := c.repetition_penalty) is not None:
        rules.append(
            (
                f"repetition penalty {penalty:g}",
                lambda x, rows, _: penalties.penalise_repetition(x, rows.texts, penalty),
            )
        )
    frequency, presence = c.frequency_penalty or 0.0, c.presence_penalty or 0.0
    if frequency or presence:

        def count(s: Sampler, text: Text) -> penalties.Changes:
            return penalties.count_penalties(text[s._prompt_length :], frequency, presence)

        rules.append((f"frequency {frequency:g}, presence {presence:g}", _adding(count)))
    if multiplier := c.dry_multiplier:

        def dry(s: Sampler, text: Text) -> penalties.Changes:
            return penalties.dry_penalties(
                text, multiplier, c.dry_base, c.dry_allowed_length, s._breakers
            )

        rules.append((f"DRY {multiplier:g}", _adding(dry)))
    if (n := c.no_repeat_ngram) is not None:
        rules.append((f"no repeated {n}-gram", _adding(lambda _, t: penalties.ngram_bans(t, n))))
    if sampler._min_tokens:
        name = f"no end before {sampler._min_tokens} tokens"
        rules.append((name, _adding(lambda s, text: s._end_ban(text))))
    return rules


def _rules_for_these_logits(c: SamplingConfig) -> list[tuple[str, Rule]]:
    """The rules that need nothing but the logits, with their names."""
    if c.temperature == 0:
        return []
    rules = [(f"temperature {c.temperature:g}", _with_value(scale_by_temperature, c.temperature))]
    for name, value, keep in (
        ("top-k", c.top_k, keep_top_k),
        ("top-p", c.top_p, keep_top_p),
        ("min-p", c.min_p, keep_min_p),
        ("typical-p", c.typical_p, keep_typical),
    ):
        if value is not None:
            rules.append((f"{name} {value:g}", _with_value(keep, value)))
    if probability := c.xtc_probability:
        threshold = c.xtc_threshold
        rules.append(
            (
                f"XTC {threshold:g}",
                lambda x, _, numbers: exclude_top_choices(x, threshold, probability, numbers[1]),
            )
        )
    if c.mirostat_tau is not None:
        name = f"mirostat {c.mirostat_tau:g}"
        rules.append((name, lambda x, _, numbers: keep_surprise(x, numbers[2])))
    return rules


def _adding(changes_of: Callable[[Sampler, Text], penalties.Changes]) -> Rule:
    """Turn a rule on one text into a rule on logits."""

    def rule(logits: Array, rows: _Rows, _: Array) -> Array:
        pairs = zip(rows.samplers, rows.texts, strict=True)
        return penalties.add(logits, [changes_of(sampler, text) for sampler, text in pairs])

    return rule


def _with_value(keep: Callable[[Array, Any], Array], value: float) -> Rule:
    return lambda logits, *_: keep(logits, value)


def _constrain(logits: Array, rows: _Rows, _: Array) -> Array:
    return constraint.mask(logits, [s._matcher for s in rows.samplers if s._matcher is not None])


def _best(logits: Array) -> Array:
    """The most probable token of each row, or V where all are −∞ or NaN. (B, V) → (B,)"""
    xp, ids = array_namespace(logits), greedy(logits)
    best = xp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return xp.where(best > -xp.inf, ids, logits.shape[1])


def _as_numpy(logits: Array) -> Array:
    """The same logits, by the faster library if they are in this machine's memory."""
    found = in_host_memory(logits)
    return logits if found is None else found


def _probabilities(logits: Array) -> NDArray:
    """The probabilities of the first row, on the host; 0 for all if none is left. (B, V) → (V,)"""
    row: NDArray = np.array(logits[0].tolist())
    if not row.max() > -np.inf:  # or NaN, which rules make of a row without tokens
        return np.zeros(len(row))
    weights = np.exp(row - row.max())
    return np.asarray(np.nan_to_num(weights / weights.sum()))  # NaN: beyond all numbers


def _stage(rule: str, before: NDArray, after: NDArray, top: int) -> Stage:
    best = np.argsort(-np.maximum(before, after), kind="stable")[:top].tolist()
    listed = [(i, float(before[i]), float(after[i])) for i in best]
    return Stage(rule, int(np.count_nonzero(after)), listed)
