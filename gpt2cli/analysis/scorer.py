"""Settings of scoring: what texts begin with, the stride of windows, the room they need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpt2cli.analysis import ranking, scoring
from gpt2cli.analysis.packing import LOGITS_TOKENS
from gpt2cli.analysis.scoring import Score
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.pages import PAGE, pages_for
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.progress import Advance
from gpt2cli.system import estimate
from gpt2cli.text.tokenizer import Tokenizer

CACHE_BYTES = 10**9  # at most, for the keys and values of windows read side by side


@dataclass(frozen=True, slots=True)
class Scorer:
    """Settings for one model; its decoder is made later, when the texts are known.

    `stride` is checked against the context. With `bos` texts begin with end-of-text, and with
    `special` they may name it. `block` is how many tokens' logits to hold at once.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    stride: int
    block: int = LOGITS_TOKENS
    bos: bool = False
    special: bool = True

    def __post_init__(self) -> None:
        scoring.check_stride(self.stride, self.config.context_length)

    def encode(self, pieces: Iterable[str]) -> Sequence[int]:
        """Token ids of a text in pieces. Raises `UsageError` if it cannot begin as it should."""
        ids = self.tokenizer.encode_pieces(pieces, special=self.special)
        if self.bos and not self.tokenizer.opening:
            ids.insert(0, self.tokenizer.beginning())
        return ids

    def check(self, ids: Sequence[int], name: str) -> None:
        """Raise `UsageError` for a text, called `name`, with nothing to score."""
        if len(ids) <= (self.bos or len(self.tokenizer.opening)):
            raise UsageError(f"{name} is empty")
        if len(ids) < 2:
            raise UsageError(f"only bos scores a single token, which is all of {name}", "bos")

    def cache_tokens(self, texts: Iterable[Sequence[int]] | None = None) -> int:
        """Tokens of KV cache to read these texts side by side, or without them any texts.

        A block's worth of windows, or all that there are; bounded by memory, but for one window.
        """
        context_length = self.config.context_length
        per_token = estimate.kv_cache_bytes(self.config, "fp32", 1)
        most = min(self.block * PAGE, CACHE_BYTES // per_token)  # of windows of a token each
        if texts is None:
            return max(context_length, most)
        plans = (scoring.windows(len(ids), context_length, self.stride) for ids in texts)
        sizes = [PAGE * pages_for(w.end - w.begin) for plan in plans for w in plan]
        return max(max(sizes, default=PAGE), min(most, sum(sizes)))

    def score_texts(
        self,
        decoder: Decoder,
        texts: Sequence[Sequence[int]],
        advance: Advance = lambda _: None,
    ) -> Iterator[tuple[int, Score]]:
        """`scoring.score_texts` with these settings."""
        return scoring.score_texts(
            decoder,
            self.tokenizer,
            texts,
            stride=self.stride,
            block=self.block,
            advance=advance,
        )

    def encode_choices(self, context: str, choices: Sequence[str]) -> tuple[list[list[int]], int]:
        """`ranking.encode` with these settings."""
        return ranking.encode(
            self.tokenizer,
            context,
            choices,
            self.config.context_length,
            special=self.special,
            bos=self.bos,
        )
