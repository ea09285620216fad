"""A text that people and a model write by turns, and that stays in the KV cache.

New text is encoded by itself and its tokens are appended: a word that is typed in two halves
becomes the tokens of the halves, as they are in the cache, not those of the whole word.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from gpt2cli.decoders.prefix_cache import PrefixCache
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.sequence import Sequence
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import fit_prompt


@dataclass(frozen=True, slots=True)
class _Turn:
    """The position where a turn began, where its completion began, and the window then."""

    begin: int
    completion: int
    start: int


class Session:
    """The text so far, and its next completion.

    `ids` are the tokens of the text, `config` the settings of the next completion. Each
    completion takes the next seed, so that one tried again turns out differently. When the
    context is full, the window slides as in `generate`.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, config: GenerationConfig) -> None:
        self.config = config
        self.ids: list[int] = []
        self._start = 0  # of the window within the text
        self._cache = PrefixCache(decoder)
        self._tokenizer = tokenizer
        self._turns: list[_Turn] = []

    @property
    def context_length(self) -> int:
        """The most tokens that the model can attend to."""
        return self._cache.context_length

    @property
    def window(self) -> list[int]:
        """The tokens that the model attends to."""
        return fit_prompt(self.ids[self._start :], self.context_length)

    @property
    def dropped(self) -> int:
        """The number of tokens dropped from the context."""
        return len(self.ids) - len(self.window)

    @property
    def text(self) -> str:
        """The whole text, with what the context has dropped."""
        return self._tokenizer.decode(self.ids)

    @property
    def pieces(self) -> list[str]:
        r"""The window token by token; bytes that are no whole character show as \x…"""
        return [self._tokenizer.show(i) for i in self.window]

    def complete(self, text: str) -> Generator[Event]:
        """Append `text` as it is and continue it; an event per token.

        Close the iterator to stop early: the text then ends with what was yielded. Raises
        `UsageError` if there is no text at all, `TokenizerError` if it cannot be encoded.
        """
        new = self._tokenizer.encode(text, follows=bool(self.ids))
        begin = len(self.ids)
        if begin + len(new) == 0:
            raise UsageError("there is no text yet to continue; give some")
        self._start = self.dropped
        self._turns.append(_Turn(begin, begin + len(new), self._start))
        self.ids += new
        yield from self._go_on()

    def retry(self) -> Generator[Event]:
        """Take back the last completion and make another. Raises `UsageError` before any."""
        turn = self._last_turn("try again")
        self._go_back(turn.completion, turn.start)
        yield from self._go_on()

    def undo(self) -> int:
        """Take back the last turn, what was typed and its completion. → tokens taken back"""
        turn = self._last_turn("take back")
        count = len(self.ids) - turn.begin
        self._go_back(turn.begin, turn.start)
        self._turns.pop()
        return count

    def clear(self) -> None:
        """Start over with an empty text; the settings stay."""
        self._go_back(0, 0)
        self._turns.clear()

    def _last_turn(self, purpose: str) -> _Turn:
        if not self._turns:
            raise UsageError(f"there is nothing to {purpose}")
        return self._turns[-1]

    def _go_back(self, length: int, start: int) -> None:
        del self.ids[length:]
        self._start = start

    def _go_on(self) -> Generator[Event]:
        config, begin, start = self.config, len(self.ids), self.dropped
        self.config = replace(config, seed=config.seed + 1)
        shown, reason = "", None
        window = self.window
        sequence = Sequence(self._tokenizer, self.context_length, window, config)
        try:
            while reason is None:
                logits = self._cache.read(sequence.window)
                self._start = start + sequence.start
                event = sequence.choose(logits, draw=self._cache.draw)
                if event.token_id is not None:
                    self.ids.append(event.token_id)
                shown, reason = shown + event.text, event.finish_reason
                yield event
        finally:
            if reason not in ("length", "eos"):
                self._keep(begin, shown)

    def _keep(self, begin: int, shown: str) -> None:
        """End the completion with what was shown, without a whole or partial stop string."""
        tokens, decode = self.ids[begin:], self._tokenizer.decode
        whole = next(n for n in range(len(tokens), -1, -1) if shown.startswith(decode(tokens[:n])))
        rest = shown[len(decode(tokens[:whole])) :]
        self.ids[begin + whole :] = self._tokenizer.encode(rest, follows=True)


def follow(text: str, line: str) -> str:
    """`line` as it continues `text`: on a new line of it, unless it begins with a space.

    Nothing is added to an empty line, nor where `text` is empty or ends with a newline.
    """
    apart = bool(text and line) and not text.endswith("\n") and not line[0].isspace()
    return "\n" + line if apart else line
