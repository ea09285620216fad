"""Text that must match: a regular expression, a JSON schema, one of some choices, a grammar.

llguidance (github.com/guidance-ai/llguidance) tells which tokens may come next; all others are
masked before one is chosen. It is imported only where there is a constraint.
"""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from gpt2cli.arrays import Array, NDArray, array_namespace, to_device_of
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import read_file
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.threads import thread_count

Kind = Literal["regex", "json-schema", "choice", "grammar"]
# `_LIMITS[b]`: for mask byte b, +∞ where bit i is set, else −∞. A minimum with these takes a
# tenth of the time of `where`, which branches per token.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_LIMITS = np.where(_BITS, np.inf, -np.inf).astype(np.float32)  # (256, 8)
# Small models emit whitespace forever; forbid optional whitespace.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


_vocabularies: dict[int, Any] = {}  # by the id of the tokenizer, as long as that lives
_making = Lock()  # several threads may ask at once


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole text must match: `source` as given, `grammar` as llguidance reads it."""

    kind: Kind
    source: str | list[str]
    grammar: str

    def matcher(self, tokenizer: Tokenizer) -> Matcher:
        """The matcher of one text in the tokens of a model."""
        vocabulary = _vocabulary_of(tokenizer)
        state = _library().LLMatcher(vocabulary, self.grammar, log_level=0)
        return Matcher(state, vocabulary.vocab_size, tokenizer.size, tokenizer.end_of_text)


class Matcher:
    """The grammar state of one text, and the tokens that may come next there.

    Made by `Constraint.matcher`. `size` is that of the tokenizer, whose end-of-text token is
    `end`; the grammar's vocabulary has `words` tokens, one more if `end` is None.
    """

    def __init__(self, state: Any, words: int, size: int, end: int | None) -> None:
        self._state, self._size, self._end = state, size, end
        self._bits = bytes(-(-words // 32) * 4)  # bit i: token i may come
        self._stale = True  # the bits are those before the last token
        self._allowed: NDArray | None = None  # made of them when asked for, as the limits
        self._limits: NDArray | None = None

    def copy(self) -> Matcher:
        """The same state, for another text."""
        other = copy.copy(self)
        other._state = self._state.deep_copy()
        return other

    def push(self, token_id: int) -> None:
        """Append a token. Raises `GPT2CLIError` for one that was not allowed."""
        if token_id == self._end:
            return
        if not self._state.consume_token(token_id):
            raise _failed(self._state)
        self._stale = True

    def matches(self) -> bool:
        """Whether the text may end where it is."""
        return bool(self._state.is_accepting())

    def must_end(self) -> bool:
        """Whether the text matches and can only end."""
        return self.matches() and self.allowed[:2].tolist() in ([], [self._end])

    @property
    def count(self) -> int:
        """How many tokens may come next."""
        look_ahead([self])
        return int.from_bytes(self._bits, "little").bit_count()

    @property
    def allowed(self) -> NDArray:
        """The ids of the tokens that may come next, in ascending order. (n,)"""
        look_ahead([self])
        if self._allowed is None:
            bits = np.unpackbits(self.packed(), count=self._size, bitorder="little")
            self._allowed = np.flatnonzero(bits.view(bool))
        return self._allowed

    @property
    def limits(self) -> NDArray:
        """+∞ for a token that may come next, else −∞. (V,), in float32"""
        look_ahead([self])
        if self._limits is None:
            self._limits = _LIMITS.take(self.packed(), axis=0).reshape(-1)[: self._size]
        return self._limits

    def packed(self) -> NDArray:
        """A bit for each token, the lowest first: whether it may come next. (⌈V / 8⌉ or more,)"""
        look_ahead([self])
        return np.frombuffer(self._bits, np.uint8)

    def check(self) -> None:
        """Raise `GPT2CLIError` if the grammar has failed; then no token may come next."""
        if self._state.is_error():
            raise _failed(self._state)

    def _show(self, bits: bytes) -> None:
        """Take what the grammar says of the next token."""
        self._stale = False
        bits = bits[: len(self._bits)]
        if self._state.is_error():
            bits = bytes(len(bits))
        if bits != self._bits:
            self._bits, self._allowed, self._limits = bits, None, None


def look_ahead(matchers: Sequence[Matcher]) -> None:
    """Find which tokens may come next in several texts, side by side.

    A matcher that is asked alone does it by itself. Where a grammar has become too large none
    may come, and `check` says why: the other texts go their way.
    """
    stale = [matcher for matcher in matchers if matcher._stale]
    if len(stale) == 1:
        (one,) = stale
        one._show(one._state.compute_bitmask())
    elif stale:
        width = max(len(matcher._bits) for matcher in stale)
        bits: NDArray = np.zeros((len(stale), width), np.uint8)
        numbered = [(matcher._state, i) for i, matcher in enumerate(stale)]
        _executor().unsafe_compute_mask_ptr(numbered, bits.ctypes.data, width, len(stale))
        for matcher, row in zip(stale, bits, strict=True):
            matcher._show(row.tobytes())


def mask(logits: Array, matchers: Sequence[Matcher]) -> Array:
    """Remove the tokens that may not come next: a rule of `sampler`. (B, V) → (B, V)"""
    look_ahead(matchers)
    xp = array_namespace(logits)
    bits = to_device_of(logits, np.stack([matcher.packed() for matcher in matchers]))
    which = xp.astype(xp.reshape(bits, (-1,)), xp.int32)  # PyTorch looks nothing up by bytes
    table = xp.astype(to_device_of(logits, _LIMITS), logits.dtype)
    limits = xp.reshape(xp.take(table, which, axis=0), (len(matchers), -1))
    return xp.minimum(logits, limits[:, : logits.shape[1]])


def resolve(
    *,
    regex: str | None = None,
    json_schema: Path | str | None = None,
    choice: Sequence[str] | None = None,
    grammar: Path | str | None = None,
) -> Constraint | None:
    """The one constraint that is given, read and checked; None without any.

    A schema (JSON) or a grammar (Lark) is a file if it is a `Path`, else the text itself. Raises
    `UsageError` for two kinds at once, and for one that no text, or only the empty text, can match.
    """
    given = {"regex": regex, "json_schema": json_schema, "choice": choice, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(
            f"{names[0]} and {names[1]} cannot go together; leave one of them out", *names[:2]
        )
    if regex is not None:
        # An empty pattern would make a comment of the slashes around it; \d is 0 to 9 here.
        pattern = _library().regex_to_lark(_text("regex", regex) or "()", "d")
        return _checked("regex", regex, f"start: /{pattern}/")
    if json_schema is not None:
        return _from_schema(json_schema)
    if choice is not None:
        return _from_choices(choice)
    if grammar is not None:
        text = _text("grammar", grammar)
        return _checked("grammar", text, _library().LLMatcher.grammar_from_lark(text))
    return None


def _from_schema(given: Path | str) -> Constraint:
    text, names = _text("json-schema", given), []
    if isinstance(given, str):
        given, names = "json_schema", ["json_schema"]
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{given} is not valid JSON: {error}", *names) from None
    if not isinstance(schema, dict):
        raise UsageError(f"{given} is no JSON schema: it must hold an object", *names)
    try:
        grammar = _library().LLMatcher.grammar_from_json_schema(text, defaults=_COMPACT)
    except ValueError as error:  # such as NaN, which Python accepts as JSON
        raise _refused("json-schema", _first_line(str(error))) from None
    return _checked("json-schema", text, grammar)


def _text(kind: Kind, given: Path | str) -> str:
    """What is given, or what the file holds."""
    if isinstance(given, Path):
        return read_file(given)
    try:
        given.encode()
    except UnicodeEncodeError:
        raise _refused(kind, "it is not valid Unicode text") from None
    return given


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


def _vocabulary_of(tokenizer: Tokenizer) -> Any:
    """The vocabulary of a tokenizer, made once: GPT-2's takes half a second."""
    with _making:
        if (key := id(tokenizer)) not in _vocabularies:
            alive = weakref.proxy(tokenizer)

            def encode(text: str) -> Any:
                return alive.encode(text, special=False, follows=True)

            made = _vocabulary(tokenizer.token_bytes(), tokenizer.end_of_text, encode)
            _vocabularies[key] = made
            weakref.finalize(tokenizer, _vocabularies.pop, key)
        return _vocabularies[key]


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


@cache
def _executor() -> Any:
    return _library().LLExecutor(num_threads=thread_count())


def _failed(state: Any) -> GPT2CLIError:
    return GPT2CLIError(f"the constraint failed: {_first_line(state.get_error())}")


def _first_line(message: str) -> str:
    """The error without its drawing of the position; a regex error states it in the last line."""
    lines = [line.strip() for line in message.splitlines()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (reasons or lines or ["it is not understood"])[0]
