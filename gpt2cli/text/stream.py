"""Tokens to text that is safe to show as it comes: whole characters, and no stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gpt2cli.text.tokenizer import Tokenizer


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


class TextStream:
    """Turns one sample's tokens into text that is safe to show, up to a stop string.

    Text that may be the beginning of a stop string is held back until it is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that can be shown after one more token.

        Where it may not stop, no stop string ends or begins.
        """
        text = self._held + self._decoder.push(token_id)
        return self._release(text) if may_stop else text

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        text = self._release(self._held + self._decoder.flush())
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
