"""An open model: what a command, a notebook and a server start from.

    import gpt2cli

    model = gpt2cli.load("bard")
    print(model.generate("ROMEO:", max_tokens=20, seed=1).text)
    for completion in model.complete(["To be", "Or not"], max_tokens=20, seed=1):
        print(completion.text)
    print(model.score("To be, or not to be").summary.perplexity)

`load` does the first steps of every use in the right order: threads, names, device, vocabulary,
weights. Nothing heavy is imported before threads are limited, and torch only where it computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import ContextError, GPT2CLIError, UsageError
from gpt2cli.opened import OpenModel
from gpt2cli.system.device import Placement, limit_threads, place, probe
from gpt2cli.system.precision import HALVES, QUANTIZED
from gpt2cli.text.window import OVERFLOW, fit_prompt
from gpt2cli.weights import sources
from gpt2cli.weights.sources import Source

if TYPE_CHECKING:
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.analysis.scoring import Score
    from gpt2cli.generation.batcher import Batcher
    from gpt2cli.generation.completing import Prepared
    from gpt2cli.generation.record import Completion
    from gpt2cli.generation.request import Event, GenerationConfig
    from gpt2cli.generation.scheduler import Scheduler
    from gpt2cli.model.gpt2 import GPT2
    from gpt2cli.weights.merging import Chosen

Prompt: TypeAlias = "str | Sequence[int] | Mapping[str, Any]"


def load(
    name: str = "124M",
    *,
    adapters: Sequence[str | Path] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    fetch: bool = True,
) -> LoadedModel:
    """Open a model: a config's name or alias, a YAML or GGUF file, a directory or owner/name.

    `adapters` are directories of LoRA adapters in PEFT's layout, or DIR=WEIGHT, which are merged
    into its weights. `device` is auto, cpu, cuda, cuda:N or mps, `precision` auto or a key of
    `system.precision.PRECISIONS`; `threads` limits those of the CPU, for which NumPy must not be
    imported yet. Its files are fetched from the hub once; without `fetch`, when they are first
    needed: the vocabulary, and the weights only with a decoder. Raises `GPT2CLIError` with a
    one-sentence message, before anything is fetched if the error can be known.
    """
    if threads is not None:
        limit_threads(threads)
    source, placement = sources.resolve(name), place(device, precision)
    if placement.device == "cpu" and placement.precision != "fp32":
        from gpt2cli.decoders.opening import check_engine

        check_engine(placement)
    model = LoadedModel(source, placement, offline=offline, adapters=_chosen(adapters, source))
    if fetch:
        model.fetch()
    return model


def _chosen(adapters: Sequence[str | Path], source: Source) -> tuple[Chosen, ...]:
    """The adapters, seen to fit the model where its size is known already."""
    if not adapters:
        return ()
    from gpt2cli.weights import adapter, merging

    chosen = tuple(map(merging.choose, adapters))
    if source.spec or source.directory:
        for one in chosen:
            adapter.read(one.directory, source.config())
    return chosen


class LoadedModel(OpenModel):
    """An open model that writes and judges texts; see `load`."""

    def __init__(
        self,
        source: Source,
        placement: Placement,
        *,
        offline: bool = False,
        adapters: tuple[Chosen, ...] = (),
        interventions: Interventions | None = None,
    ) -> None:
        super().__init__(
            source, placement, offline=offline, adapters=adapters, interventions=interventions
        )
        self._batcher: Batcher | None = None
        self._process = 0  # that has opened it
        self._opening = RLock()

    def under(self, interventions: Interventions) -> LoadedModel:
        """The same model with parts switched off or steered, as it then writes and scores texts.

        They take the place of any before. It computes with PyTorch; what it saves is the model as
        it was. Raises `UsageError` for what the model has not, and for a precision that PyTorch
        has not, such as int8.
        """
        if self.precision in QUANTIZED:
            raise UsageError(
                f"PyTorch, which alone can change a model inside, has no precision "
                f"{self.precision}; use fp32, bf16 or fp16",
                "precision",
            )
        if self.precision in HALVES and self.placement.device == "cpu":
            probe(Placement(self.placement.device, self.precision))
        self.fetch(vocabulary_only=True)
        interventions.check(self.config)
        placement = replace(self.placement, reference=True)
        return _reopen(self.source, placement, self.offline, self.adapters, interventions)

    def fit(self, ids: Sequence[int], max_tokens: int = 0, overflow: str = "slide") -> list[int]:
        """The prompt as the model reads it: whole if it fits the context, else its newest part.

        With overflow "error" `UsageError` is raised if prompt and `max_tokens` together do not;
        also under interventions at some positions, which a text that slides would leave.
        """
        context = self.config.context_length
        if self.interventions.names_positions and len(ids) + max_tokens > context:
            raise ContextError(
                f"interventions at some positions hold as long as prompt and text fit the context "
                f"of {context}: {len(ids)} tokens of prompt and {max_tokens} to generate do not"
            )
        if overflow not in OVERFLOW:
            raise UsageError(f"overflow must be slide or error, not {overflow!r}", "overflow")
        if overflow == "error" and len(ids) + max_tokens > context:
            raise ContextError(
                f"{len(ids)} tokens of prompt and {max_tokens} to generate exceed the context of "
                f"{context}; shorten one, or use overflow slide",
                "overflow",
            )
        return fit_prompt(ids, context)

    def configure(self, **settings: Any) -> GenerationConfig:
        """Settings of a generation by name, with the model's defaults.

        They are the fields of `SamplingConfig` and of `GenerationConfig`; None stands for the
        default, and without a `seed` one is drawn. Raises `UsageError` for a wrong name or value.
        """
        from gpt2cli.generation.settings import configure

        return configure(self.sampling, **settings)

    def batcher(self, max_sequences: int | None = None, batch_tokens: int | None = None) -> Batcher:
        """The decoder that all calls share, from any thread, and its batch.

        At most `max_sequences` texts are written at once, and a step reads about `batch_tokens`
        tokens; by default what the device and its memory allow. Other limits than before make
        another one, for the calls to come. In a forked process it is a new one. Raises `UsageError`
        for a limit below 1.
        """
        from gpt2cli.generation.batcher import Batcher

        with self._opening:
            if (held := self._batcher) and self._process == os.getpid():
                limits = held.scheduler.max_sequences, held.scheduler.batch_tokens
                wanted = zip((max_sequences, batch_tokens), limits, strict=True)
                if all(limit in (None, own) for limit, own in wanted):
                    return held
            self._batcher = Batcher(self.scheduler(max_sequences, batch_tokens))
            self._process = os.getpid()
            return self._batcher

    def scheduler(
        self,
        max_sequences: int | None = None,
        batch_tokens: int | None = None,
        *,
        prompt_tokens: int | None = None,
        processes: int = 1,
        network: GPT2 | None = None,
    ) -> Scheduler:
        """A batch of its own, on a decoder of its own; the limits are those of `batcher`.

        A step in which no text is being written reads up to `prompt_tokens` tokens of prompts, if
        that is more than `batch_tokens`; `processes` alike share the free memory. `network` is
        that of `decoder`. Raises `UsageError` for a limit below 1.
        """
        from gpt2cli.generation.scheduler import Scheduler
        from gpt2cli.system.memory import batch_room

        limits = {
            "max_sequences": max_sequences,
            "batch_tokens": batch_tokens,
            "prompt_tokens": prompt_tokens,
        }
        given = {name: limit for name, limit in limits.items() if limit is not None}
        for name, limit in given.items():
            if limit < 1:
                raise UsageError(f"{name} must be at least 1, not {limit}", name)
        self.fetch()
        sequences, tokens = batch_room(self.config, self.placement, max_sequences, processes)
        given["max_sequences"] = sequences
        return Scheduler(self.decoder(tokens, network=network), self.tokenizer, **given)

    def stream(self, prompt: str | Sequence[int], **settings: Any) -> Iterator[Event]:
        """Continue a text: an event per token, as it is generated. `settings` as in `configure`.

        With `overflow` "error" a prompt that leaves no room for `max_tokens` raises `UsageError`.
        Close the iterator to stop early.
        """
        return self._events(*self.prepare(prompt, settings))

    def generate(self, prompt: str | Sequence[int], **settings: Any) -> Completion:
        """Continue a text, or several times: `samples`. `settings` as in `configure`."""
        from gpt2cli.generation.record import Completion, Sample

        window, config = self.prepare(prompt, settings)
        found = Completion(0, config.seed, len(window))
        found.samples = [Sample() for _ in range(config.samples)]
        for event in self._events(window, config):
            found.add(event)
        return found

    def complete(
        self,
        prompts: Iterable[Prompt],
        *,
        ordered: bool = True,
        max_sequences: int | None = None,
        batch_tokens: int | None = None,
        **settings: Any,
    ) -> Iterator[Completion]:
        """Continue any number of prompts, many at once: completions in order, or as they finish.

        A prompt is a text, or token ids, or a mapping with `prompt` and settings of its own;
        `settings` are those of the others. Prompts are taken one by one as there is room, so
        there may be more than memory holds. What a prompt becomes depends on nothing but itself:
        with the same seed `generate` gives the same. A wrong one has its `error` set.
        """
        from gpt2cli.generation.completing import complete

        batcher = self.batcher(max_sequences, batch_tokens)
        ready = (self._prepared(i, prompt, settings) for i, prompt in enumerate(prompts))
        return complete(batcher, ready, ordered=ordered)

    def close(self) -> None:
        """Let go of the decoder; the next call opens another."""
        with self._opening:
            self._batcher = None

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process needs: it opens the model itself."""
        local = self.source.directory if self.source.repo_id is None else None
        source = replace(self.source, directory=local and local.absolute())
        adapters = tuple(replace(a, directory=a.directory.absolute()) for a in self.adapters)
        return _reopen, (source, self.placement, self.offline, adapters, self.interventions)

    def prepare(
        self, prompt: str | Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[list[int], GenerationConfig]:
        """What the model reads of a prompt, and the settings for it, those of `generate`."""
        given = dict(settings)
        overflow = given.pop("overflow", OVERFLOW[0])
        config = self.configure(**given)
        return self.fit(self.ids(prompt), config.max_tokens, overflow), config

    def ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens of a prompt, given as text or as such. Raises `UsageError` for wrong ids."""
        if isinstance(prompt, str):
            return self.encode(prompt)
        size = self.tokenizer.size
        if not all(type(i) is int and 0 <= i < size for i in prompt):
            raise UsageError(f"a prompt of token ids has whole numbers from 0 to {size - 1}")
        return list(prompt) or [self.tokenizer.beginning()]

    def _events(self, window: list[int], config: GenerationConfig) -> Iterator[Event]:
        if config.beams is None:
            return self.batcher().stream(window, config)
        from gpt2cli.generation import beam

        with self.batcher().alone() as decoder:
            return iter(list(beam.generate(decoder, self.tokenizer, window, config)))

    def _prepared(self, index: int, prompt: Prompt, settings: dict[str, Any]) -> Prepared:
        from gpt2cli.generation.completing import Prepared
        from gpt2cli.generation.record import Completion

        completion = Completion(index, 0, 0)
        try:
            if isinstance(prompt, Mapping):
                settings = {**settings, **prompt}
                prompt = settings.pop("prompt", None)
            if not isinstance(prompt, str | Sequence):
                raise UsageError("a prompt must be a text or a list of token ids", "prompt")
            window, config = self.prepare(prompt, settings)
            if config.beams is not None:
                raise UsageError("beams are searched one prompt at a time: use generate", "beams")
        except GPT2CLIError as error:
            completion.error = error
            return Prepared(completion, [], None)
        completion.seed, completion.prompt_tokens = config.seed, len(window)
        return Prepared(completion, window, config)

    def scorer(
        self, stride: int | None = None, *, bos: bool = False, special: bool = True
    ) -> Scorer:
        """Settings of scoring: windows are `stride` tokens apart, by default half the context.

        With `bos` each text begins with end-of-text; with `special` "<|endoftext|>" in a text is
        that token.
        """
        from gpt2cli.analysis import scoring
        from gpt2cli.analysis.scorer import Scorer

        tokenizer = self.tokenizer
        stride = scoring.default_stride(self.config.context_length) if stride is None else stride
        block = scoring.block_size(self.placement.device)
        return Scorer(self.config, tokenizer, stride, block, bos, special)

    def score(self, text: str, stride: int | None = None, *, bos: bool = False) -> Score:
        """How surprising each token of a text is; `.summary` has perplexity and bits per byte."""
        from gpt2cli.analysis.scoring import join

        scorer = self.scorer(stride, bos=bos)
        ids = scorer.encode([text])
        scorer.check(ids, "the text")
        with self.batcher().alone() as decoder:
            [score] = join(scorer.score_texts(decoder, [ids]))
        return score


def _reopen(
    source: Source,
    placement: Placement,
    offline: bool,
    adapters: tuple[Chosen, ...],
    interventions: Interventions,
) -> LoadedModel:
    return LoadedModel(
        source, placement, offline=offline, adapters=adapters, interventions=interventions
    )
