"""GPT-2's byte-level BPE: text to token ids and back, one stream at a time.

The merging itself is tiktoken's. This module reads the files that travel with a
checkpoint, `vocab.json` and `merges.txt` (or the `tokenizer.json` that newer tools write
in their place), into the ranks that tiktoken wants. Source of the scheme: OpenAI's
`encoder.py` (github.com/openai/gpt-2) and Sennrich et al. 2016, arXiv:1508.07909.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from gpt2cli.config import END_OF_TEXT
from gpt2cli.errors import TokenizerError, UsageError

# How OpenAI's encoder.py cuts text into words before any merging.
SPLIT_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# The longest beginning that ends where no word goes on: the pattern has space only in front.
_WHOLE_WORDS = re.compile(r".*\S(?=[ \n])", re.DOTALL)


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

    def __init__(self, ranks: dict[bytes, int], special: dict[str, int]) -> None:
        self._encoding = tiktoken.Encoding(
            "gpt2cli", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        self._vocabulary = ranks, special
        self._is_cut_at_spaces = not any(" " in token or "\n" in token for token in special)
        self.end_of_text = special.get(END_OF_TEXT)
        self.size = 1 + max(*ranks.values(), *special.values(), -1)

    def __eq__(self, other: object) -> bool:
        """Whether all tokens have the same ids."""
        return isinstance(other, Tokenizer) and self._vocabulary == other._vocabulary

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a checkpoint's vocabulary. Raises `TokenizerError` if it is none."""
        vocab, merged_tokens = _read_files(directory)
        try:
            byte_ids = {bytes([byte]): vocab[char] for char, byte in byte_alphabet().items()}
            ids = [vocab[token] for token in merged_tokens]
        except KeyError as error:
            raise TokenizerError(f"{directory}: the vocabulary lacks {error.args[0]!r}") from None
        merged = dict(zip(_to_bytes(merged_tokens, directory), ids, strict=True))
        in_order = list(merged.values())
        if in_order != sorted(in_order):
            # tiktoken merges by id, GPT-2 by the order of the merges.
            raise TokenizerError(f"{directory}: token ids do not follow the order of the merges")
        ranks = byte_ids | merged
        used = set(ranks.values())
        try:
            return cls(ranks, {text: i for text, i in vocab.items() if i not in used})
        except ValueError:
            raise TokenizerError(f"{directory}: a token is not Unicode") from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; with `special`, "<|endoftext|>" in it is that one token.

        Raises `TokenizerError` for text that is not Unicode (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text is a lone surrogate, which is not Unicode"
            ) from None
        try:
            return self._encoding.encode(
                text, allowed_special="all" if special else set(), disallowed_special=()
            )
        except ValueError:
            raise TokenizerError("the text has a run of whitespace that is too long") from None

    def encode_pieces(self, pieces: Iterable[str], *, special: bool = True) -> array[int]:
        """The ids that `encode` gives for a text which comes in pieces, in 2 or 4 bytes each."""
        ids = array("H" if self.size <= 1 << 16 else "I")
        rest = ""
        for piece in pieces:
            rest += piece
            if self._is_cut_at_spaces and (words := _WHOLE_WORDS.match(rest)):
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


def _read_files(directory: Path) -> tuple[dict[str, int], list[str]]:
    """Vocabulary of a checkpoint, special tokens included, and what each merge results in."""
    vocab_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    if vocab_file.is_file() and merges_file.is_file():
        lines = _read(merges_file).split("\n")
        pairs: Sequence[Any] = [s for s in lines if s and not s.startswith("#version")]
        return _vocabulary(_read_json(vocab_file), vocab_file), _merges(pairs, merges_file)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{directory} has no vocab.json and merges.txt, nor tokenizer.json")
    data = _read_json(path)
    try:
        vocab, pairs = data["model"]["vocab"], data["model"]["merges"]
        added = {entry["content"]: entry["id"] for entry in data.get("added_tokens", [])}
        vocab = {**vocab, **added}
        if not isinstance(pairs, list):
            raise TypeError
    except (KeyError, TypeError):
        raise TokenizerError(f"{path} does not describe a byte-level BPE vocabulary") from None
    return _vocabulary(vocab, path), _merges(pairs, path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None


def _vocabulary(data: Any, path: Path) -> dict[str, int]:
    # In ways that do not look at fifty thousand entries one by one.
    ids = data.values() if isinstance(data, dict) else ()
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= 2**32 or "" in data:
        raise TokenizerError(f"{path} must map tokens to ids")
    if len(set(ids)) != len(data):
        raise TokenizerError(f"{path} gives one id to several tokens")
    return dict(data)


def _merges(pairs: Sequence[Any], path: Path) -> list[str]:
    """The tokens that merges make: each is "a b", or the pair [a, b] that newer files hold."""
    for i, pair in enumerate(pairs):
        parts = pair.split(" ") if type(pair) is str else pair
        if type(parts) is not list or len(parts) != 2 or not all(type(p) is str for p in parts):
            raise TokenizerError(f"{path}: merge {i + 1} is not a pair of tokens: {pair!r}")
    return [pair.replace(" ", "") if type(pair) is str else "".join(pair) for pair in pairs]
