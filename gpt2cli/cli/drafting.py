"""The draft that the options name: checked, opened, used and reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpt2cli.cli import choosing, opening, options
from gpt2cli.config.sampling import DRAFT_TOKENS

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.generation.request import Event, GenerationConfig
    from gpt2cli.generation.speculative import Draft


class Drafting:
    """The draft model or n-gram draft, if one was asked for."""

    def __init__(self, draft: choosing.Draft, where: options.Where) -> None:
        """Raises `UsageError` for a draft that is nothing, and for tokens without a draft."""
        draft.check_company({"draft_tokens": "draft"})
        self.name = draft.draft
        if self.name is None:
            return
        from gpt2cli.generation.speculative import NGRAM, DraftStats

        self._tokens = DRAFT_TOKENS if draft.draft_tokens is None else draft.draft_tokens
        self._stats = DraftStats()
        self._draft: Draft | None = None
        is_model = self.name != NGRAM
        self._model = opening.load_named(self.name, where, where.precision) if is_model else None

    def check(self, config: GenerationConfig) -> None:
        """Raise `UsageError` for settings that cannot be combined with a draft."""
        if self.name is not None:
            from gpt2cli.generation import speculative

            speculative.check(config, self._tokens)

    def check_vocabulary(self, model: LoadedModel) -> None:
        """Raise `UsageError` for a draft with other tokens than the model's."""
        if self.name is not None and self._model is not None:
            from gpt2cli.generation import speculative

            opening.fetch(self._model, vocabulary_only=True)
            tokenizers = self._model.tokenizer, model.tokenizer
            speculative.check_vocabulary((self._model.name, model.name), tokenizers)

    def fetch(self) -> None:
        """Fetch the draft's weights."""
        if self.name is not None and self._model is not None:
            opening.fetch(self._model)

    def open(self) -> None:
        """Load it."""
        if self.name is None:
            return
        from gpt2cli.generation.speculative import ModelDraft, NgramDraft

        if self._model is not None:
            self._draft = ModelDraft(opening.open_decoder(self._model))
        else:
            self._draft = NgramDraft()

    def generate(
        self, decoder: Decoder, model: LoadedModel, window: list[int], config: GenerationConfig
    ) -> Iterator[Event]:
        """Continue a prompt, with the draft if there is one."""
        from gpt2cli.generation import loop, speculative

        if self.name is None:
            return loop.generate(decoder, model.tokenizer, window, config)
        assert self._draft is not None
        return speculative.generate(
            decoder, self._draft, model.tokenizer, window, config, self._stats, self._tokens
        )

    def facts(self) -> dict[str, Any] | None:
        """Proposed and accepted tokens; None without a draft."""
        if self.name is None:
            return None
        return {"name": self.name, "tokens": self._tokens, **self._stats.facts()}
