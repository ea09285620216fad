"""GPT-2's byte-level BPE: text to token ids and back, one stream at a time.

tiktoken does the merging, by ranks made of the files that `vocabulary` reads. Where a checkpoint
splits text otherwise than GPT-2, `pipeline` encodes.
Source of the scheme: OpenAI's `encoder.py` (github.com/openai/gpt-2) and Sennrich et al. 2016,
arXiv:1508.07909.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken

from gpt2cli.errors import TokenizerError, UsageError
from gpt2cli.text import kept, vocabulary
from gpt2cli.text.table import TokenTable
from gpt2cli.text.vocabulary import END_OF_TEXT, Vocabulary, byte_alphabet

if TYPE_CHECKING:
    from gpt2cli.text.pipeline import Pipeline

# How OpenAI's encoder.py cuts text into words before any merging.
SPLIT_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# The longest beginning that ends between words: the pattern has space only in front.
_WHOLE_WORDS = re.compile(r".*\S(?=[ \n])", re.DOTALL)
_WHITESPACE = re.compile(r"([^\S\x1c-\x1f]{100000,})")  # tiktoken fails at ten times this
BRIEF = 400  # characters of text for which not all tokens are needed
LONGEST_WORD = 1_000_000  # characters; merging them takes 0.2 GB and up to seconds


class Tokenizer:
    """A vocabulary: `encode` and `decode` between text and ids.

    `size` counts the ids; `end_of_text` is the id that separates documents, or None. `opening`
    are the ids that stand before every text, for GPT-2 none.
    """

    def __init__(
        self,
        ranks: dict[bytes, int] | TokenTable,
        special: dict[str, int],
        pipeline: Pipeline | None = None,
        *,
        others: Mapping[int, bytes] | None = None,
        opening: Sequence[int] = (),
        source: Vocabulary | Path | None = None,
    ) -> None:
        """`special` tokens are looked for in a text; none of `others` comes of one.

        `source` is what all that was read from, if it was: a vocabulary, or its directory.
        """
        self._given, self._special, self._pipeline = ranks, special, pipeline
        self._source = source
        self._others = others or {}
        self._is_cut_at_spaces = pipeline is None and not any(map(_has_space, special))
        self.opening = list(opening)
        self.end_of_text = special.get(END_OF_TEXT)
        if isinstance(ranks, TokenTable):
            self._brief, size = BRIEF, ranks.size
        else:
            self._brief, size = 0, 1 + max(ranks.values(), default=-1)
            _ = self._encoding  # or an error
        self.size = max(size, 1 + max((*special.values(), *self._others), default=-1))

    def __eq__(self, other: object) -> bool:
        """Whether all tokens have the same ids, and every text the same tokens."""
        return isinstance(other, Tokenizer) and self._parts == other._parts

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a checkpoint's vocabulary. Raises `TokenizerError` if it is none."""
        known = kept.identity(directory)
        if known and (found := kept.find(known)):
            return cls(found.table, found.special, opening=found.opening, source=directory)
        made = cls.of(vocabulary.read(directory), str(directory))
        if known and made._pipeline is None:
            table = TokenTable.of(made._ranks)
            kept.keep(known, kept.Kept(table, made._special, made.opening), directory)
        return made

    @classmethod
    def of(cls, found: Vocabulary, origin: str) -> Tokenizer:
        """A tokenizer for a vocabulary. Raises `TokenizerError` that names its `origin`."""
        merged_tokens = [merge.replace(" ", "") for merge in found.merges]
        try:
            byte_ids = {bytes([byte]): found.tokens[c] for c, byte in byte_alphabet().items()}
            ids = [found.tokens[token] for token in merged_tokens]
        except KeyError as error:
            raise TokenizerError(f"{origin}: the vocabulary lacks {error.args[0]!r}") from None
        merged = dict(zip(_to_bytes(merged_tokens, origin), ids, strict=True))
        ranks = byte_ids | merged
        special = {text: entry["id"] for text, entry in found.added.items()}
        used = {*ranks.values(), *special.values()}
        # tiktoken merges by id, GPT-2 by the order of the merges.
        in_order = ids == sorted(merged.values())
        pipeline = None
        try:
            others = {i: _any_bytes(token) for token, i in found.tokens.items() if i not in used}
            if others or not (in_order and found.is_gpt2s):
                from gpt2cli.text.pipeline import Pipeline

                pipeline = Pipeline(found)
            return cls(ranks, special, pipeline, others=others, opening=found.opening, source=found)
        except (ValueError, OverflowError):
            raise TokenizerError(f"{origin}: a token is not Unicode") from None

    def encode(self, text: str, *, special: bool = True, follows: bool = False) -> list[int]:
        """Token ids of `text`; with `special`, "<|endoftext|>" in it is that one token.

        So is every other token that was added to the vocabulary. A text that `follows` another
        gets nothing in front, where a vocabulary puts a space or a token there. Raises
        `TokenizerError` for text that is not Unicode (a lone surrogate), and for letters, digits,
        whitespace or signs of which more than `LONGEST_WORD` stand in a row.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text is a lone surrogate, which is not Unicode"
            ) from None
        if len(text) > LONGEST_WORD:
            _check_words(text, whole=self._pipeline is not None and not self._pipeline.cuts_words)
        opening = [] if follows else self.opening
        if self._pipeline is not None:
            return opening + self._pipeline.encode(text, special=special, follows=follows)
        if self._is_cut_at_spaces and len(text) > 100_000:
            return opening + self._encode_long(text, special)
        return opening + self._encode(text, special)

    def _encode(self, text: str, special: bool) -> list[int]:
        if not text:
            return []
        try:
            return self._encoding_for(text).encode(
                text, allowed_special="all" if special else set(), disallowed_special=()
            )
        except ValueError:
            raise TokenizerError("the text has a run of whitespace that is too long") from None

    def _encoding_for(self, text: str) -> tiktoken.Encoding:
        """An encoding that knows all tokens which this text can become.

        To make one of all tokens takes longer than the first short texts do: of the ranks, only
        those of bytes that stand somewhere in a text are ever looked up.
        """
        if not isinstance(self._given, TokenTable) or self._brief < len(text):
            self._brief = 0
            return self._encoding
        self._brief -= len(text)
        return _encoding(self._given.within(text.encode()), self._special)

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        return self._given.ranks() if isinstance(self._given, TokenTable) else self._given

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return _encoding(self._ranks, self._special)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What this was read from, merges included; None if it was not read."""
        return vocabulary.read(self._source) if isinstance(self._source, Path) else self._source

    @property
    def _parts(self) -> tuple[object, ...]:
        return self._ranks, self._special, self._pipeline, self.opening

    def _encode_long(self, text: str, special: bool) -> list[int]:
        """The same where a run of whitespace may be longer than tiktoken's pattern can match.

        Such a run is one word, without its last character, which joins what follows; at the end
        of the text, or before a special token, it is one word.
        """
        parts = _WHITESPACE.split(text)  # text and long runs, in turn
        stops = tuple(self._encoding.special_tokens_set) if special else ()
        ids, before = [], ""
        for part, run, after in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
            ids += self._encode(before + part, special)
            cut = len(run) - (after != "" and not after.startswith(stops))
            ids += self._whitespace.encode(run[:cut])
            before = run[cut:]
        return ids + self._encode(before + parts[-1], special)

    @cached_property
    def _whitespace(self) -> tiktoken.Encoding:
        """An encoding for which any run of whitespace is one word."""
        return tiktoken.Encoding(
            "whitespace", pat_str=r"\s+", mergeable_ranks=self._ranks, special_tokens={}
        )

    def encode_pieces(self, pieces: Iterable[str], *, special: bool = True) -> array[int]:
        """The ids that `encode` gives for a text which comes in pieces, in 2 or 4 bytes each.

        Not even the text is held, if it is cut into words as GPT-2 does.
        """
        ids = array(self.typecode)
        for part in self.encode_parts(pieces, special=special):
            ids.extend(part)
        return ids

    def encode_parts(
        self, pieces: Iterable[str], *, special: bool = True, follows: bool = False
    ) -> Iterator[list[int]]:
        """The ids that `encode` gives for a text which comes in pieces, some at a time."""
        if not self._is_cut_at_spaces:
            yield self.encode("".join(pieces), special=special, follows=follows)
            return
        rest = ""
        if not follows:
            yield self.opening
        for piece in pieces:
            begin = max(0, len(rest) - 1)
            rest += piece
            if words := _WHOLE_WORDS.match(rest, begin):
                whole = rest[: words.end()]
                yield self.encode(whole, special=special, follows=True)
                rest = rest[words.end() :]
        yield self.encode(rest, special=special, follows=True)

    @property
    def typecode(self) -> str:
        """The type of `array` that holds every id: of 2 bytes, or of 4."""
        return "H" if self.size <= 1 << 16 else "I"

    def fingerprint(self) -> str:
        """A hash that is the same in every process, and for another vocabulary another."""
        described = {
            "ranks": {token.hex(): i for token, i in self._ranks.items()},
            "special": self._special,
            "vocabulary": self.vocabulary and asdict(self.vocabulary),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens; they may begin or end inside a character.

        Raises `UsageError` for an id that no token has.
        """
        ids = list(ids)
        try:
            if self._brief and isinstance(self._given, TokenTable):
                return b"".join(map(self._given.token, ids))
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            if len(ids) > 1:  # one of them; find which
                return b"".join(self.decode_bytes([i]) for i in ids)
            if ids[0] in self._others:
                return self._others[ids[0]]
            if ids[0] in self._special.values():
                return next(text for text, i in self._special.items() if i == ids[0]).encode()
            raise UsageError(
                f"there is no token {ids[0]}; ids go from 0 to {self.size - 1}"
            ) from None

    def beginning(self) -> int:
        """The id to begin an empty text with: end-of-text. Raises `UsageError` if there is none."""
        if self.opening:
            return self.opening[0]
        if self.end_of_text is None:
            raise UsageError(
                f"this model has no {END_OF_TEXT} token to begin from; give a text to continue"
            )
        return self.end_of_text

    def one(self, text: str) -> int:
        """The id of a text that is one token. Raises `UsageError` if it is not."""
        ids = self.encode(text, follows=True)
        if len(ids) == 1:
            return ids[0]
        parts = ", ".join(f"{self.show(i)!r} (#{i})" for i in ids[:8])
        hint = "" if text.startswith(" ") else "; mind that most words begin with a space"
        if hint and len(self.encode(f" {text}", follows=True)) == 1:
            hint = f"; {f' {text}'!r}, with a space before it, is one"
        raise UsageError(
            f"{text!r} is {len(ids)} tokens, not one{': ' + parts if parts else ''}{hint}"
        )

    def token_bytes(self) -> list[bytes]:
        """The bytes of every token in the order of the ids; none for an id that is not used."""
        vocabulary = [b""] * self.size
        for token in self._encoding.token_byte_values():
            vocabulary[self._encoding.encode_single_token(token)] = token
        for text in self._encoding.special_tokens_set:
            vocabulary[self._encoding.encode_single_token(text)] = text.encode()
        for i, token in self._others.items():
            vocabulary[i] = token
        return vocabulary

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some tokens, with U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def show(self, token_id: int) -> str:
        r"""One token's text; bytes that are no characters by themselves as \xe2."""
        return self.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")


def _encoding(ranks: dict[bytes, int], special: dict[str, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "gpt2cli", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def _to_bytes(tokens: Sequence[str], origin: str) -> list[bytes]:
    """The bytes of tokens in the alphabet of the vocabulary's files.

    All at once, because a call per token would be a noticeable delay.
    """
    # No other character may be in a token; one beyond Latin-1 marks what separates them.
    table = dict.fromkeys(range(256), "\ufffd")
    table |= {ord(char): chr(byte) for char, byte in byte_alphabet().items()} | {10: "\u0100"}
    try:
        translated = "\n".join(tokens).translate(table).split("\u0100")
        return [token.encode("latin-1") for token in translated] if tokens else []
    except UnicodeEncodeError:
        raise TokenizerError(f"{origin}: a token has characters that stand for no byte") from None


def _any_bytes(token: str) -> bytes:
    """The bytes of a token that no merge makes: in the files' alphabet, else as it is written."""
    alphabet = byte_alphabet()
    return (
        bytes(map(alphabet.__getitem__, token)) if alphabet.keys() >= {*token} else token.encode()
    )


def _check_words(text: str, whole: bool) -> None:
    """Raise `TokenizerError` for a word longer than `LONGEST_WORD`, which takes too much memory.

    With `whole` the text is one word; else a word is a run of characters of one class, which
    if too long has a character at a multiple of `LONGEST_WORD`.
    """
    if whole:
        raise TokenizerError(
            f"the text has over {LONGEST_WORD:,} characters, and this vocabulary does not cut it "
            "into words"
        )
    for at in range(0, len(text), LONGEST_WORD):
        before, after = text[max(0, at - LONGEST_WORD) : at], text[at : at + LONGEST_WORD + 1]
        kind = _class(text[at])
        if _count(kind, reversed(before)) + _count(kind, after) > LONGEST_WORD:
            raise TokenizerError(
                f"the text has over {LONGEST_WORD:,} letters, digits, signs or spaces in a row; "
                "break them up"
            )


def _count(kind: str, characters: Iterable[str]) -> int:
    """How many characters are of one class, up to the first that is not."""
    return sum(1 for _ in takewhile(lambda c: _class(c) == kind, characters))


def _class(character: str) -> str:
    """A character's class in `SPLIT_PATTERN`: whitespace, a letter, a number or a sign."""
    if _has_space(character):
        return "whitespace"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "sign"


def _has_space(text: str) -> bool:
    """Whether a text has whitespace as in `SPLIT_PATTERN`; Python counts more characters."""
    return any(c.isspace() and not "\x1c" <= c <= "\x1f" for c in text)
