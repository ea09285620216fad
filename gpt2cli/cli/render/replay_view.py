"""Views of texts that were written again: one in full, many as a table, all as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import complain, visible, visible_token
from gpt2cli.cli.render.tables import new_table, print_rich
from gpt2cli.errors import shown

if TYPE_CHECKING:
    from gpt2cli.serving.replaying.repeating import Outcome, Seen
    from gpt2cli.serving.replaying.weighing import Weighed

_SAID = {"same": "the same", "error": "not repeated", "skipped": "none"}
_OPTIONS = {name: f"--{name}" for name in ("run", "device", "precision")}
AFTER, BEFORE = 30, 40  # characters around a difference
LONGEST = 100  # characters of a fact


def as_dict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of it by name."""
    return {"texts": [_record(outcome) for outcome in outcomes], "summary": _counts(outcomes)}


def print_one(outcome: Outcome) -> None:
    """One text: the same, or both texts where they part, their tokens, and why."""
    if outcome.error is not None:
        complain(_sentence(outcome))
        return
    seen = outcome.different
    if seen is None:
        print_rich(f"the same: all of {_tokens(outcome.tokens)}, by {visible(outcome.model)}")
        return
    lines = [
        f"different from token {seen.at.position} on (the first is 0), by {visible(outcome.model)}",
        "",
    ]
    names = ("recorded", "now")
    ended = (seen.at.recorded_ended, seen.at.now_ended)
    before = visible_token(_utf8(seen.before[-BEFORE:]))
    for name, token, after, end in zip(names, seen.tokens, seen.after, ended, strict=True):
        follows = "" if end else visible_token(_utf8(after[:AFTER]))
        lines.append(f"{name:8}  {before}[{_token(token, end)}]{follows}")
    lines.append("")
    for name, token, logprob, end in zip(
        names, seen.tokens, seen.weighed.logprobs, ended, strict=True
    ):
        lines.append(f"{name:8}  {_token(token, end)}  {_chance(logprob)}".rstrip())
    lines += ["", *_reasons([outcome])]
    lines += [_near(seen.weighed)] if seen.weighed.is_near else []
    print_rich(*lines, wrap=False)


def print_all(outcomes: Sequence[Outcome]) -> None:
    """A line for each text, then what is not as it was, and how many are the same."""
    headings = ("record", "text", "recorded", "now", "at token", "recorded, %", "now, %")
    table = new_table(*headings, text=4)
    for outcome in outcomes:
        seen = outcome.different
        if seen is None:
            table.add_row(visible(outcome.name), _SAID[outcome.status])
            continue
        tokens = zip(seen.tokens, (seen.at.recorded_ended, seen.at.now_ended), strict=True)
        table.add_row(
            visible(outcome.name),
            "different",
            *(_token(*each) for each in tokens),
            str(seen.at.position),
            *map(_percent, seen.weighed.logprobs),
            style="yellow",
        )
    failed = [f"{o.name}: {_sentence(o)}" for o in outcomes if o.error is not None]
    print_rich(table, "", *map(visible, failed), *_reasons(outcomes), _summary(outcomes))


def _summary(outcomes: Sequence[Outcome]) -> str:
    """How many texts are the same, and what the others are."""
    counts = _counts(outcomes)
    parts = [f"{counts['same']:,} of {_count(counts['texts'], 'text')} the same"]
    if counts["different"]:
        near = sum(o.different is not None and o.different.weighed.is_near for o in outcomes)
        said = f" (rounding may have decided {near:,} of them)" if near else ""
        parts.append(f"{counts['different']:,} different{said}")
    parts += [f"{counts['errors']:,} not repeated"] if counts["errors"] else []
    return ", ".join(parts)


def _sentence(outcome: Outcome) -> str:
    """What is wrong, in the names of options."""
    return "" if outcome.error is None else outcome.error.renamed(_OPTIONS)


def _reasons(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What is not as it was for texts that differ, each once."""
    different = [outcome for outcome in outcomes if outcome.different]
    yield from dict.fromkeys(line for each in different for line in _reasons_of(each))


def _reasons_of(outcome: Outcome) -> Iterator[str]:
    for change in outcome.changes:
        was, now = _fact(change.recorded), _fact(change.now)
        yield f"{change.name} was {was} and is now {now}"
    if not outcome.changes:
        said = f"; it does not say: {', '.join(outcome.unsaid)}" if outcome.unsaid else ""
        yield f"nothing that the record names has changed{said}"


def _near(weighed: Weighed) -> str:
    if weighed.is_drawn:
        return (
            f"the draw missed the recorded token by {100 * (weighed.miss or 0):.2g} % of all "
            "probability: rounding may decide"
        )
    return f"both tokens are {weighed.miss or 0:.2g} nats apart: rounding may decide"


def _nearness(weighed: Weighed) -> dict[str, Any]:
    return {"miss": weighed.miss, "drawn": weighed.is_drawn, "near": weighed.is_near}


def _fact(value: Any) -> str:
    if value in (None, [], {}, False):
        return "none" if value is not False else "off"
    text = value if isinstance(value, str) else shown(value)
    return visible(text[:LONGEST])


def _token(text: str | None, is_end: bool) -> str:
    if text is None:
        return "the end" if is_end else "?"
    return visible_token(_utf8(text))


def _chance(logprob: float | None) -> str:
    return "" if logprob is None else f"{_percent(logprob)} % ({logprob:.3f} nats)"


def _percent(logprob: float | None) -> str:
    return "" if logprob is None else f"{100 * math.exp(logprob):.2f}"


def _tokens(count: int) -> str:
    return _count(count, "token")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    status = [outcome.status for outcome in outcomes]
    names = {"same": "same", "different": "different", "errors": "error", "skipped": "skipped"}
    return {"texts": len(status) - status.count("skipped")} | {
        name: status.count(own) for name, own in names.items()
    }


def _record(outcome: Outcome) -> dict[str, Any]:
    seen = outcome.different
    found: dict[str, Any] = {"name": outcome.name, "status": outcome.status}
    if outcome.error is not None:
        return found | {"error": _sentence(outcome)}
    found |= {"model": outcome.model, "tokens": outcome.tokens}
    changes = {c.name: {"recorded": c.recorded, "now": c.now} for c in outcome.changes}
    difference = None if seen is None else _difference(seen)
    return found | {"difference": difference, "changes": changes, "unsaid": list(outcome.unsaid)}


def _difference(seen: Seen) -> dict[str, Any]:
    at, texts, ended = seen.at, seen.tokens, (seen.at.recorded_ended, seen.at.now_ended)
    both = {
        name: {"id": token, "text": text, "ended": end, "logprob": logprob, "after": after}
        for name, token, text, end, logprob, after in zip(
            ("recorded", "now"),
            (at.recorded, at.now),
            texts,
            ended,
            seen.weighed.logprobs,
            seen.after,
            strict=True,
        )
    }
    return {"position": at.position, "before": seen.before, **both, **_nearness(seen.weighed)}
