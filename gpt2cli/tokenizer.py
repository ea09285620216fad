"""GPT-2's byte-level BPE: text to token ids and back, one stream at a time.

The merging itself is tiktoken's, over the ranks that it wants, from the files that
`vocabulary` reads. A checkpoint that cuts text in another way than GPT-2 has the `tokenizers`
library do it. Source of the scheme: OpenAI's `encoder.py` (github.com/openai/gpt-2) and
Sennrich et al. 2016, arXiv:1508.07909.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tiktoken

from gpt2cli import vocabulary
from gpt2cli.config import END_OF_TEXT
from gpt2cli.errors import TokenizerError, UsageError

# How OpenAI's encoder.py cuts text into words before any merging.
SPLIT_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# The longest beginning that ends where no word goes on: the pattern has space only in front.
_WHOLE_WORDS = re.compile(r".*\S(?=[ \n])", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+|\d+|(?:[^\w\s]|_)+")  # nearly: letters, digits or signs
_WHITESPACE = re.compile(r"(\s{100000,})")  # tiktoken fails at about three times as much
LONGEST_WORD = 4_000_000  # characters; to merge so many takes 0.2 GB and more than a second

Encode = Callable[[str, bool], list[int]]
"""From a text to ids; whether tokens that were added to the vocabulary are looked for in it."""


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in the vocabulary's files.

    Printable Latin-1 stands for itself; the other 68 bytes get U+0100, U+0101, …
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = (b for b in range(256) if b not in set(printable))
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """A vocabulary: `encode` and `decode` between text and ids.

    `size` counts the ids; `end_of_text` is the id that separates documents, or None.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        special: dict[str, int],
        pipeline: dict[str, Any] | None = None,
    ) -> None:
        self._encoding = tiktoken.Encoding(
            "gpt2cli", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        self._vocabulary = ranks, special, pipeline
        self._pipeline = None if pipeline is None else _pipeline(pipeline)
        self._is_cut_at_spaces = pipeline is None and not any(
            " " in token or "\n" in token for token in special
        )
        self.end_of_text = special.get(END_OF_TEXT)
        self.size = 1 + max(*ranks.values(), *special.values(), -1)

    def __eq__(self, other: object) -> bool:
        """Whether all tokens have the same ids, and every text the same tokens."""
        return isinstance(other, Tokenizer) and self._vocabulary == other._vocabulary

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a checkpoint's vocabulary. Raises `TokenizerError` if it is none."""
        found = vocabulary.read(directory)
        merged_tokens = [pair.replace(" ", "") for pair in found.merges]
        try:
            byte_ids = {bytes([byte]): found.tokens[c] for c, byte in byte_alphabet().items()}
            ids = [found.tokens[token] for token in merged_tokens]
        except KeyError as error:
            raise TokenizerError(f"{directory}: the vocabulary lacks {error.args[0]!r}") from None
        merged = dict(zip(_to_bytes(merged_tokens, directory), ids, strict=True))
        in_order = list(merged.values())
        if in_order != sorted(in_order):
            # tiktoken merges by id, GPT-2 by the order of the merges.
            raise TokenizerError(f"{directory}: token ids do not follow the order of the merges")
        ranks = byte_ids | merged
        used = set(ranks.values())
        special = {text: i for text, i in found.tokens.items() if i not in used} | found.added
        if len(set(special.values())) != len(special):
            raise TokenizerError(f"{directory}: one id is given to several tokens")
        try:
            return cls(ranks, special, found.pipeline)
        except (ValueError, OverflowError):
            raise TokenizerError(f"{directory}: a token is not Unicode") from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; with `special`, "<|endoftext|>" in it is that one token.

        So is every other token that was added to the vocabulary. Raises `TokenizerError` for
        text that is not Unicode (a lone surrogate), and for a word of over `LONGEST_WORD`.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text is a lone surrogate, which is not Unicode"
            ) from None
        if len(text) > LONGEST_WORD:
            _check_words(text)
        if self._pipeline is not None:
            return self._pipeline(text, special)
        if self._is_cut_at_spaces and len(text) > 100_000:
            return self._encode_long(text, special)
        return self._encode(text, special)

    def _encode(self, text: str, special: bool) -> list[int]:
        try:
            return self._encoding.encode(
                text, allowed_special="all" if special else set(), disallowed_special=()
            )
        except ValueError:
            raise TokenizerError("the text has a run of whitespace that is too long") from None

    def _encode_long(self, text: str, special: bool) -> list[int]:
        """The same where a run of whitespace may be longer than tiktoken's pattern can match.

        Such a run is one word, but for its last character: what follows takes that.
        """
        parts = _WHITESPACE.split(text)  # text and long runs, in turn
        ids, before = [], ""
        for i, part in enumerate(parts):
            if i % 2 == 0:
                ids += self._encode(before + part, special)
                continue
            at_end = i == len(parts) - 2 and not parts[-1]
            word, before = (part, "") if at_end else (part[:-1], part[-1])
            ids += self._whitespace.encode(word)
        return ids

    @cached_property
    def _whitespace(self) -> tiktoken.Encoding:
        """Takes any run of whitespace for one word."""
        return tiktoken.Encoding(
            "whitespace", pat_str=r"\s+", mergeable_ranks=self._vocabulary[0], special_tokens={}
        )

    def encode_pieces(self, pieces: Iterable[str], *, special: bool = True) -> array[int]:
        """The ids that `encode` gives for a text which comes in pieces, in 2 or 4 bytes each."""
        ids = array("H" if self.size <= 1 << 16 else "I")
        rest = ""
        for piece in pieces:
            rest += piece
            has_end = self._is_cut_at_spaces and (" " in piece or "\n" in piece)
            if has_end and (words := _WHOLE_WORDS.match(rest)):
                ids.extend(self.encode(words[0], special=special))
                rest = rest[words.end() :]
        ids.extend(self.encode(rest, special=special))
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens; they may begin or end inside a character.

        Raises `UsageError` for an id that no token has.
        """
        ids = list(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            if len(ids) > 1:  # one of them; find which
                return b"".join(self.decode_bytes([i]) for i in ids)
            raise UsageError(
                f"there is no token {ids[0]}; ids go from 0 to {self.size - 1}"
            ) from None

    def beginning(self) -> int:
        """End-of-text, which stands before a text. Raises `UsageError` where there is none."""
        if self.end_of_text is None:
            raise UsageError(
                f"this model has no {END_OF_TEXT} token to begin from; give a text to go on from"
            )
        return self.end_of_text

    def one(self, text: str) -> int:
        """The id of a text that is one token. Raises `UsageError` if it is not."""
        ids = self.encode(text)
        if len(ids) == 1:
            return ids[0]
        parts = ", ".join(f"{self.show(i)!r} (#{i})" for i in ids[:8])
        raise UsageError(
            f"{text!r} is {len(ids)} tokens, not one{': ' + parts if parts else ''}"
            + ("" if text.startswith(" ") else "; mind that most words begin with a space")
        )

    def token_bytes(self) -> list[bytes]:
        """The bytes of every token in the order of the ids; none for an id that is not used."""
        vocabulary = [b""] * self.size
        for token in self._encoding.token_byte_values():
            vocabulary[self._encoding.encode_single_token(token)] = token
        for text in self._encoding.special_tokens_set:
            vocabulary[self._encoding.encode_single_token(text)] = text.encode()
        return vocabulary

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some tokens, with U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def show(self, token_id: int) -> str:
        r"""One token's text; bytes that are no characters by themselves as \xe2."""
        return self.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")


class StreamDecoder:
    """Decodes token by token and never emits half a character.

    What `push` returns over a whole stream, then `flush`, adds up to `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that one more token completes; may be empty."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self) -> str:
        """What an unfinished character leaves at the end: U+FFFD or nothing."""
        return self._utf8.decode(b"", final=True)


def _to_bytes(tokens: Sequence[str], directory: Path) -> list[bytes]:
    """The bytes of tokens in the alphabet of the vocabulary's files.

    All at once: fifty thousand times anything is a delay that people notice.
    """
    # No other character may be in a token; one beyond Latin-1 marks what separates them.
    table = dict.fromkeys(range(256), "\ufffd")
    table |= {ord(char): chr(byte) for char, byte in byte_alphabet().items()} | {10: "\u0100"}
    try:
        translated = "\n".join(tokens).translate(table).split("\u0100")
        return [token.encode("latin-1") for token in translated] if tokens else []
    except UnicodeEncodeError:
        raise TokenizerError(
            f"{directory}: a token has characters that stand for no byte"
        ) from None


def _check_words(text: str) -> None:
    """Raise `TokenizerError` for a word that would take more memory than it is worth."""
    runs = (run for run in text.split() if len(run) > LONGEST_WORD)
    if any(len(word[0]) > LONGEST_WORD for run in runs for word in _WORD.finditer(run)):
        raise TokenizerError(
            f"the text has a word of over {LONGEST_WORD:,} letters, digits or signs in a row"
        )


def _pipeline(description: dict[str, Any]) -> Encode:
    """How the `tokenizers` library encodes what its `tokenizer.json` describes."""
    from tokenizers import Tokenizer as Pipeline

    def read(added: list[Any]) -> Any:
        whole = description | {"added_tokens": added, "truncation": None, "padding": None}
        try:
            return Pipeline.from_str(json.dumps(whole))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"tokenizer.json cannot be used: {error}") from None

    with_added, plain = read(description["added_tokens"]), read([])

    def encode(text: str, special: bool) -> list[int]:
        used = with_added if special else plain
        ids: list[int] = used.encode(text, add_special_tokens=False).ids
        return ids

    return encode
