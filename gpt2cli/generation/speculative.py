"""Speculative decoding: a draft proposes tokens, which the model checks all in one pass.

A pass over a few tokens takes a model little longer than one over a single token: it waits
for its weights either way. Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023,
arXiv:2302.01318. What is generated, and how often, is what the model alone would generate.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Protocol

from gpt2cli.arrays import Array
from gpt2cli.config.sampling import DRAFT_TOKENS
from gpt2cli.decoders.prefix_cache import PrefixCache
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.sequence import Ids, Sequence
from gpt2cli.sampling.sampler import Proposal, Sampler
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import slide

NGRAM = "ngram"  # the draft without a model
NGRAM_SIZES = (3, 2)  # tokens that must match, the longest first


class Draft(Protocol):
    """Guesses how a text continues."""

    def propose(self, text: Ids, count: int, sampler: Sampler) -> list[Proposal]:
        """At most `count` tokens; if drawn, by the rules of `sampler`."""


class ModelDraft:
    """A smaller model of the same vocabulary.

    Its window slides by itself, over all of the text: it may hold fewer tokens than the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._cache = PrefixCache(decoder)
        self._start = 0  # of the window within the text

    def propose(self, text: Ids, count: int, sampler: Sampler) -> list[Proposal]:
        """The draft model's continuation, each token drawn by the rules of `sampler`."""
        window, context_length = list(text[self._start :]), self._cache.context_length
        if len(window) + count > context_length:
            window = slide(text, context_length)
            self._start = len(text) - len(window)
        proposals: list[Proposal] = []
        longer = list(text)
        for _ in range(min(count, context_length - len(window))):
            # All but the newest token or two are in the KV cache.
            logits = self._cache.read(longer[self._start :])
            if (proposal := sampler.propose(logits, longer)) is None:
                break
            proposals.append(proposal)
            longer.append(proposal.token)
        return proposals


class NgramDraft:
    """Expects repetition: proposes what followed the last tokens where they stood before.

    "Prompt lookup", Saxena 2023: github.com/apoorvumang/prompt-lookup-decoding.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # where each n-gram ended last
        self._known = 1  # the tokens that have been looked at

    def propose(self, text: Ids, count: int, sampler: Sampler) -> list[Proposal]:
        """The tokens after the last place that reads like the end of the text."""
        for end in range(self._known, len(text)):
            for n in NGRAM_SIZES:
                if n <= end:
                    self._ends[tuple(text[end - n : end])] = end
        self._known = len(text)
        for n in NGRAM_SIZES:
            if end := self._ends.get(tuple(text[-n:]), 0):
                # Past the end of the text, repeat the proposal itself.
                return [Proposal(text[end + i % (len(text) - end)]) for i in range(count)]
        return []


@dataclass(slots=True)
class DraftStats:
    """The numbers of tokens proposed and accepted, and of the model's passes."""

    proposed: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """The share of proposals accepted; None before there is any."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens gained per pass of the model; 1 without a draft."""
        return 1 + self.accepted / self.passes if self.passes else None

    def facts(self) -> dict[str, float | None]:
        """All figures by name."""
        rates = {"acceptance_rate": self.acceptance_rate, "tokens_per_pass": self.tokens_per_pass}
        return asdict(self) | rates


def check(config: GenerationConfig, max_draft_tokens: int) -> None:
    """Raise `UsageError` for settings that cannot be combined with a draft."""
    if config.samples > 1 or config.beams is not None:
        many = "beams" if config.beams is not None else "samples"
        raise UsageError(f"a draft and {many} cannot go together; leave one of them out", many)
    if config.constraint is not None:
        raise UsageError("a draft and a constraint cannot go together; leave one of them out")
    if config.prompt_logprobs is not None:
        raise UsageError("a draft and prompt_logprobs cannot go together; leave one of them out")
    if max_draft_tokens < 1:
        raise UsageError(f"a draft must propose at least 1 token, not {max_draft_tokens}")


def check_vocabulary(names: abc.Sequence[str], tokenizers: abc.Sequence[Tokenizer]) -> None:
    """Raise `UsageError` if a draft's tokens are not those of the model; the draft comes first."""
    draft, model = tokenizers
    if draft != model:
        raise UsageError(
            f"{names[0]} cannot draft for {names[1]}: their vocabularies differ "
            f"({draft.size:,} and {model.size:,} tokens); use a model of the same family, "
            f"or {NGRAM}"
        )


class Reader:
    """A model that reads a draft's proposals ahead.

    `read` returns logits already computed, as long as the tokens chosen are those proposed.
    Otherwise the model drops the remaining proposals and reads new ones after the token that was
    chosen: one more than were accepted last time, at most `max_draft_tokens`.
    """

    def __init__(
        self, decoder: Decoder, draft: Draft, stats: DraftStats, max_draft_tokens: int
    ) -> None:
        self._cache, self._draft, self._stats = PrefixCache(decoder), draft, stats
        self._max_draft_tokens = self._count = max_draft_tokens
        self._proposals: list[Proposal] = []  # of the last pass
        self._logits: Array = None  # (T, V), after the token before them and after each
        self._true = 0  # how many of them were accepted

    @property
    def proposal(self) -> Proposal | None:
        """The proposal for the token to be chosen now."""
        return self._proposals[self._true] if self._true < len(self._proposals) else None

    def read(self, sequence: Sequence) -> Array:
        """Logits after the newest token of a text. → (1, V)"""
        if self.proposal and self.proposal.token == sequence.ids[-1]:
            self._true += 1
            self._stats.accepted += 1
        else:
            self._read_ahead(sequence)
        return self._logits[self._true : self._true + 1]

    def close(self) -> None:
        """Leave its place in the model's decoder."""
        self._cache.close()

    def _read_ahead(self, sequence: Sequence) -> None:
        """Read a token that was not proposed, and the draft's proposals after it."""
        window = sequence.window
        if self._proposals:
            self._count = min(self._max_draft_tokens, self._true + 1)
        room = min(self._cache.context_length - len(window), sequence.tokens_left - 1)
        count = min(room, self._count) if sequence.started else 0
        self._proposals = (
            self._draft.propose(sequence.ids, count, sequence.sampler) if count > 0 else []
        )
        self._true = 0
        if sequence.started:
            self._stats.passes += 1
            self._stats.proposed += len(self._proposals)
        proposed = [proposal.token for proposal in self._proposals]
        self._logits = self._cache.read([*window, *proposed], every=1 + len(proposed))


def generate(
    decoder: Decoder,
    draft: Draft,
    tokenizer: Tokenizer,
    prompt: Ids,
    config: GenerationConfig,
    stats: DraftStats,
    max_draft_tokens: int = DRAFT_TOKENS,
) -> Iterator[Event]:
    """As `loop.generate`, for one sample, with a draft's proposals.

    Greedy, the text is the same; otherwise each text is as probable as it is without a draft.
    """
    check(config, max_draft_tokens)
    sequence = Sequence(tokenizer, decoder.context_length, prompt, config)
    with closing(Reader(decoder, draft, stats, max_draft_tokens)) as reader:
        while sequence.finish_reason is None:
            logits = reader.read(sequence)
            yield sequence.choose(logits, reader.proposal)
