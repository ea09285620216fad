"""Two texts of the same record: the first token that differs, and why it may."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import TokenizerError
from gpt2cli.serving.replaying.record import Written, interventions

if TYPE_CHECKING:
    from gpt2cli.generation.record import Sample
    from gpt2cli.text.tokenizer import Tokenizer

FACTS = (
    *("model", "repo_id", "revision", "weights", "adapters", "interventions", "precision"),
    *("device", "engine", "version", "processor", "compiled", "draft"),
)
SEEN = 200  # characters of what follows, for its first token


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two texts differ.

    `position` counts the tokens of the continuation from 0. A token is None where a text has ended
    there, or where only its text is known, of which it may not be told.
    """

    position: int
    recorded: int | None
    now: int | None
    recorded_ended: bool = False
    now_ended: bool = False


def first_difference(written: Written, now: Sample, tokenizer: Tokenizer) -> Difference | None:
    """Where a text differs from what it was; None if it does not."""
    if written.ids is None:
        return _in_text(written.text or "", now, tokenizer)
    end = None if written.is_part else _end(written.finish_reason, tokenizer)
    for i, token in enumerate(written.ids):
        if i >= len(now.token_ids):
            return Difference(i, token, _end(now.finish_reason, tokenizer), now_ended=True)
        if now.token_ids[i] != token:
            return Difference(i, token, now.token_ids[i])
    count = len(written.ids)
    if written.is_part or written.finish_reason == now.finish_reason:
        is_same = written.is_part or written.text in (None, now.text)
        return None if is_same else Difference(count, None, None, True, True)
    after = now.token_ids[count] if len(now.token_ids) > count else None
    if after is None:
        return Difference(count, end, _end(now.finish_reason, tokenizer), True, True)
    return Difference(count, end, after, recorded_ended=True)


def _end(reason: str | None, tokenizer: Tokenizer) -> int | None:
    """The token that ends a text for this reason."""
    return tokenizer.end_of_text if reason == "eos" else None


def _in_text(recorded: str, now: Sample, tokenizer: Tokenizer) -> Difference | None:
    """The same where only the text is known that was written: its tokens are found in it."""
    if recorded == now.text:
        return None
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    before = ""
    for i, token in enumerate(now.token_ids):
        held = utf8.getstate()[0]
        longer = before + utf8.decode(tokenizer.decode_bytes([token]))
        if not recorded.startswith(longer):
            rest = recorded[len(before) :]
            return Difference(i, _first_token(rest, held, tokenizer), token, rest == "")
        before = longer
    rest, count = recorded[len(before) :], len(now.token_ids)
    held = utf8.getstate()[0]
    end = _end(now.finish_reason, tokenizer)
    return Difference(count, _first_token(rest, held, tokenizer), end, rest == "", True)


def _first_token(text: str, held: bytes, tokenizer: Tokenizer) -> int | None:
    """The token that a text begins with, as a tokenizer cuts it; None if that is not known.

    The bytes that are `held` begin its first character, and are of tokens before.
    """
    if held or not text or "\ufffd" in text[:SEEN]:
        return None
    try:
        return next(iter(tokenizer.encode(text[:SEEN], special=False, follows=True)), None)
    except TokenizerError:
        return None


@dataclass(frozen=True, slots=True)
class Change:
    """A fact that is not what it was."""

    name: str
    recorded: Any
    now: Any


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Which of the facts that a record has are others now, in the order of their weight."""
    return [
        Change(name, recorded[name], now.get(name))
        for name in FACTS
        if name in recorded and _plain(name, recorded[name]) != _plain(name, now.get(name))
    ]


def unsaid(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The facts that are known now, and that a record says nothing of."""
    names = ("model", "precision", "device", "engine", "version", "processor")
    return [name for name in names if name not in recorded and name in now]


def _plain(name: str, value: Any) -> Any:
    """A fact as it may be compared: nothing is nothing, and adapters are known by their names."""
    if name == "adapters" and isinstance(value, Sequence) and not isinstance(value, str):
        return [_adapter(str(each)) for each in value]
    if name == "interventions":
        return interventions(value) or None
    return value or None


def _adapter(text: str) -> tuple[str, float]:
    """The directory's own name, and the weight: 1 where none is written."""
    name, equals, number = text.rpartition("=")
    try:
        return (Path(name).name, float(number)) if equals else (Path(text).name, 1.0)
    except ValueError:
        return Path(text).name, 1.0
