"""Text that must match: a regular expression, a JSON schema, one of some choices, a grammar.

llguidance (github.com/guidance-ai/llguidance) tells which tokens may come next; all others are
masked before one is chosen. It is imported only where there is a constraint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_api_compat import device

from gpt2cli.arrays import Array, NDArray, array_namespace
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import read_file
from gpt2cli.text.tokenizer import Tokenizer

Kind = Literal["regex", "json-schema", "choice", "grammar"]
# `_LIMITS[b]`: for mask byte b, +∞ where bit i is set, else −∞. A minimum with these takes a
# tenth of the time of `where`, which branches per token.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_LIMITS = np.where(_BITS, np.inf, -np.inf).astype(np.float32)  # (256, 8)
# Small models emit whitespace forever; forbid optional whitespace.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole text must match: `source` as given, `grammar` as llguidance reads it."""

    kind: Kind
    source: str | list[str]
    grammar: str

    def matcher(self, tokenizer: Tokenizer) -> Matcher:
        """The matcher of one text."""
        return Matcher(self.matchers(tokenizer, 1))

    def matchers(self, tokenizer: Tokenizer, count: int) -> Matchers:
        """One matcher per text, for `count` texts in the tokens of a model."""

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, special=False, follows=True)

        vocabulary = _vocabulary(tokenizer.token_bytes(), tokenizer.end_of_text, encode)
        return Matchers(vocabulary, self.grammar, count, tokenizer)


class Matcher:
    """That of one text."""

    def __init__(self, one: Matchers) -> None:
        self._one = one

    def mask(self, logits: Array, _: Any = ()) -> Array:
        """Mask what may not come next."""
        return self._one.mask(logits)

    def push(self, token_id: int) -> None:
        """Append one token."""
        self._one.push(0, token_id)

    def matches(self) -> bool:
        """Whether the text may end."""
        return self._one.matches(0)

    def must_end(self) -> bool:
        """Whether it can only end."""
        return self._one.must_end(0)

    def copy(self) -> Matcher:
        """The same for another text."""
        import copy

        other = copy.copy(self._one)
        other._limits = self._one._limits.copy()
        other._matchers = [self._one._matchers[0].deep_copy()]
        return Matcher(other)


class Matchers:
    """The grammar state of each of B texts, and the tokens that may come next there."""

    def __init__(self, vocabulary: Any, grammar: str, count: int, tokenizer: Tokenizer) -> None:
        first = _library().LLMatcher(vocabulary, grammar, log_level=0)
        self._size, self._end = tokenizer.size, tokenizer.end_of_text
        self._limits: NDArray = np.tile(self._limits_after(first), (count, 1))  # (B, V), ±inf
        self._matchers = [first, *(first.deep_copy() for _ in range(count - 1))]

    def mask(self, logits: Array, _: Sequence[Sequence[int]] = ()) -> Array:
        """Mask the tokens that may not come next: a rule of `sampler`. (B, V) → (B, V)"""
        xp = array_namespace(logits)
        limits = xp.asarray(self._limits, dtype=logits.dtype, device=device(logits))
        return xp.minimum(logits, limits)

    def push(self, row: int, token_id: int) -> None:
        """Append one token to a text. Raises `GPT2CLIError` for one that was not allowed."""
        matcher = self._matchers[row]
        if token_id != self._end and not matcher.consume_token(token_id):
            raise GPT2CLIError(f"the constraint failed: {_first_line(matcher.get_error())}")
        self._limits[row] = self._limits_after(matcher)

    def matches(self, row: int) -> bool:
        """Whether the text may end where it is."""
        return bool(self._matchers[row].is_accepting())

    def must_end(self, row: int) -> bool:
        """Whether the text matches and can only end."""
        allowed = self._limits[row] > 0
        ends = self._end is not None and bool(allowed[self._end])
        return self.matches(row) and int(np.count_nonzero(allowed)) == ends

    def _limits_after(self, matcher: Any) -> NDArray:
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise GPT2CLIError(f"the constraint failed: {_first_line(matcher.get_error())}")
        return _LIMITS.take(bits, axis=0).reshape(-1)[: self._size]


def resolve(
    *,
    regex: str | None = None,
    json_schema: Path | None = None,
    choice: Sequence[str] | None = None,
    grammar: Path | None = None,
) -> Constraint | None:
    """The one constraint that is given, read and checked; None without any.

    Raises `UsageError` for two kinds at once, and for one that no text, or only the empty text,
    can match.
    """
    given = {"regex": regex, "json_schema": json_schema, "choice": choice, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(
            f"{names[0]} and {names[1]} cannot go together; leave one of them out", *names[:2]
        )
    if regex is not None:
        # An empty pattern would make a comment of the slashes around it; \d is 0 to 9 here.
        pattern = _library().regex_to_lark(regex or "()", "d")
        return _checked("regex", regex, f"start: /{pattern}/")
    if json_schema is not None:
        return _from_schema(json_schema)
    if choice is not None:
        return _from_choices(choice)
    if grammar is not None:
        text = read_file(grammar)
        return _checked("grammar", text, _library().LLMatcher.grammar_from_lark(text))
    return None


def _from_schema(path: Path) -> Constraint:
    text = read_file(path)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{path} is no JSON schema: it must hold an object")
    try:
        grammar = _library().LLMatcher.grammar_from_json_schema(text, defaults=_COMPACT)
    except ValueError as error:  # such as NaN, which Python accepts as JSON
        raise _refused("json-schema", _first_line(str(error))) from None
    return _checked("json-schema", text, grammar)


def _from_choices(texts: Sequence[str]) -> Constraint:
    if not all(texts):
        raise UsageError("a choice must not be empty")
    # Each character by its number, so that none is a metacharacter.
    choices = ["".join(f"\\x{{{ord(c):x}}}" for c in text) for text in texts]
    grammar = _library().LLMatcher.grammar_from_regex("|".join(choices))
    return _checked("choice", list(texts), grammar)


def _checked(kind: Kind, source: str | list[str], grammar: str) -> Constraint:
    """Try a grammar on a vocabulary of the 256 bytes, which can spell any text."""
    every_byte = _vocabulary([bytes([i]) for i in range(256)], None, lambda s: list(s.encode()))
    matcher = _library().LLMatcher(every_byte, grammar, log_level=0)
    if matcher.is_error():
        raise _refused(kind, _first_line(matcher.get_error()))
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    if matcher.is_error() or not np.unpackbits(bits, count=256, bitorder="little").any():
        only = "only the empty text" if matcher.is_accepting() else "no text at all"
        raise _refused(kind, f"{only} would match")
    return Constraint(kind, source, grammar)


def _refused(kind: Kind, reason: str) -> UsageError:
    setting = kind.replace("-", "_")
    return UsageError(f"{setting}: {reason}", setting)


def _vocabulary(
    tokens: Iterable[bytes], end: int | None, encode: Callable[[str], list[int]]
) -> Any:
    """The vocabulary as llguidance expects it; an end-of-text token is appended if it has none."""
    library = _library()

    class Vocabulary:
        bos_token_id = None

        def __init__(self) -> None:
            self.tokens = list(tokens)
            self.eos_token_id = len(self.tokens) if end is None else end
            if end is None:
                self.tokens.append(b"<end>")
            self.special_token_ids = [self.eos_token_id]

        def __call__(self, text: str) -> list[int]:
            return encode(text)

    return library.LLTokenizer(library.TokenizerWrapper(Vocabulary()))


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise GPT2CLIError(
            "constraints need llguidance: pip install 'gpt2cli[constrain]'"
        ) from None
    return llguidance


def _first_line(message: str) -> str:
    """The error without its drawing of the position; a regex error states it in the last line."""
    lines = [line.strip() for line in message.splitlines()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (reasons or lines or ["it is not understood"])[0]
