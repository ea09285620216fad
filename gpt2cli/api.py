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
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import ContextError, GPT2CLIError, TokenizerError, UsageError, WeightsError
from gpt2cli.system.device import Placement, limit_threads, place
from gpt2cli.system.precision import QUANTIZED
from gpt2cli.text.window import OVERFLOW, fit_prompt
from gpt2cli.version import __version__
from gpt2cli.weights import sources
from gpt2cli.weights.sources import Source

if TYPE_CHECKING:
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.analysis.scoring import Score
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.generation.batcher import Batcher
    from gpt2cli.generation.completing import Prepared
    from gpt2cli.generation.record import Completion
    from gpt2cli.generation.request import Event, GenerationConfig
    from gpt2cli.generation.scheduler import Scheduler
    from gpt2cli.progress import Progress
    from gpt2cli.text.tokenizer import Tokenizer
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
    if placement.precision in QUANTIZED:
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


class LoadedModel:
    """A model with its adapters, and the device and precision it runs in; see `load`."""

    def __init__(
        self,
        source: Source,
        placement: Placement,
        *,
        offline: bool = False,
        adapters: tuple[Chosen, ...] = (),
    ) -> None:
        self.source, self.placement, self.offline = source, placement, offline
        self.adapters = adapters
        self._batcher: Batcher | None = None
        self._process = 0  # that has opened it
        self._opening = RLock()

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.source.name

    @property
    def title(self) -> str:
        """The same with its adapters, for people."""
        adapters = " and ".join(map(str, self.adapters))
        return f"{self.name} with {adapters}" if adapters else self.name

    @property
    def precision(self) -> str:
        """A key of `system.precision.PRECISIONS`."""
        return self.placement.precision

    @property
    def sampling(self) -> SamplingConfig:
        """The model's default sampling settings."""
        return self.source.sampling

    @property
    def directory(self) -> Path:
        """Where its files are. Raises `WeightsError` before they were fetched."""
        if self.source.directory is None:
            raise WeightsError(f"{self.name} has not been fetched")
        return self.source.directory

    @cached_property
    def config(self) -> ModelConfig:
        """The architecture. Raises `UsageError` for a hub model that is not in the cache."""
        return self.source.config()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary. Raises `TokenizerError` if it has more ids than the model."""
        from gpt2cli.text.tokenizer import Tokenizer

        self.fetch(vocabulary_only=True)
        tokenizer = Tokenizer.load(self.directory)
        if tokenizer.size > self.config.vocab_size:
            raise TokenizerError(
                f"the vocabulary of {self.name} has {tokenizer.size} tokens, "
                f"its model only {self.config.vocab_size}"
            )
        return tokenizer

    def fetch(self, *, vocabulary_only: bool = False, progress: Progress | None = None) -> None:
        """Fetch its files, or those of its vocabulary. A cached model needs no network."""
        self.source = sources.fetch(
            self.source, offline=self.offline, vocabulary_only=vocabulary_only, progress=progress
        )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt; end-of-text alone stands for an empty one."""
        tokenizer = self.tokenizer
        return tokenizer.encode(text, special=special) or [tokenizer.beginning()]

    def fit(self, ids: Sequence[int], max_tokens: int = 0, overflow: str = "slide") -> list[int]:
        """The prompt as the model reads it: whole if it fits the context, else its newest part.

        With overflow "error" `UsageError` is raised if prompt and `max_tokens` together do not.
        """
        context = self.config.context_length
        if overflow not in OVERFLOW:
            raise UsageError(f"overflow must be slide or error, not {overflow!r}", "overflow")
        if overflow == "error" and len(ids) + max_tokens > context:
            raise ContextError(
                f"{len(ids)} tokens of prompt and {max_tokens} to generate exceed the context of "
                f"{context}; shorten one, or use overflow slide",
                "overflow",
            )
        return fit_prompt(ids, context)

    def check_compile(self) -> None:
        """Raise `UsageError` if there is no decoding step to compile."""
        from gpt2cli.decoders.opening import check_compile

        check_compile(self.placement)

    def decoder(
        self,
        tokens: int | None = None,
        *,
        compiled: bool = False,
        progress: Progress | None = None,
    ) -> Decoder:
        """The weights on their device, with a KV cache for `tokens` tokens of all sequences.

        Without `tokens` it has room for one full context. The logits cover the vocabulary; if they
        are not finite the decoder raises `WeightsError`. Raises `UsageError` if memory is too
        small.
        """
        from gpt2cli.decoders.opening import open_decoder
        from gpt2cli.system.memory import check_room

        if tokens is not None:
            check_room(self.config, self.placement, tokens)
        self.fetch(progress=progress)
        return open_decoder(
            self.directory,
            self.placement,
            tokens,
            adapters=self.adapters,
            size=self.tokenizer.size,
            name=self.name,
            compiled=compiled,
            progress=progress,
        )

    def save(
        self,
        directory: Path,
        precision: str | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write the model, its adapters merged in, as a directory that transformers reads.

        `precision` is fp32, fp16 or bf16, and by default that of the files; with adapters fp32,
        since a smaller one would round what they add away. Raises `UsageError` if the directory
        exists, unless it holds a model and `overwrite` allows its end.
        """
        from gpt2cli.system.memory import check_conversion
        from gpt2cli.weights.exporting import to_directory

        self.fetch(progress=progress)
        check_conversion(self.config)
        to_directory(
            self.directory,
            directory,
            precision,
            self.adapters,
            overwrite=overwrite,
            progress=progress,
        )

    def save_gguf(
        self,
        path: Path,
        precision: str | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """The same as a GGUF file, also in q8_0 and q4_0; needs the extra `gguf`."""
        from gpt2cli.system.memory import check_conversion
        from gpt2cli.weights.exporting import to_gguf

        self.fetch(progress=progress)
        check_conversion(self.config)
        to_gguf(
            self.directory,
            path,
            precision,
            self.adapters,
            name=self.title,
            overwrite=overwrite,
            progress=progress,
        )

    def save_adapter(self, path: Path, *, overwrite: bool = False) -> None:
        """Write its one adapter alone, as a GGUF file that llama.cpp adds to the model."""
        from gpt2cli.weights.exporting import adapter_to_gguf

        if len(self.adapters) != 1:
            raise UsageError(f"a file holds one adapter, and {self.title} has another number")
        self.fetch()
        adapter_to_gguf(self.directory, path, self.adapters[0], overwrite=overwrite)

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
    ) -> Scheduler:
        """A batch of its own, on a decoder of its own; the limits are those of `batcher`.

        A step in which no text is being written reads up to `prompt_tokens` tokens of prompts, if
        that is more than `batch_tokens`; `processes` alike share the free memory. Raises
        `UsageError` for a limit below 1.
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
        return Scheduler(self.decoder(tokens), self.tokenizer, **given)

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
        return _reopen, (source, self.placement, self.offline, adapters)

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

    def why_quantized_again(self) -> str | None:
        """Why the next run has to quantize the weights again; None if it need not."""
        if self.precision not in QUANTIZED:
            return None
        from gpt2cli.decoders.opening import why_quantized_again

        return why_quantized_again(self.directory, self.precision, self.adapters)

    def facts(self) -> dict[str, Any]:
        """What runs, where and how: the same keys wherever a result is written down."""
        from gpt2cli.decoders.opening import engine_name

        return {
            "model": self.name,
            "repo_id": self.source.repo_id,
            "revision": self.source.revision,
            "adapters": [str(adapter) for adapter in self.adapters],
            "device": self.placement.device,
            "precision": self.precision,
            "engine": engine_name(self.placement),
            "version": __version__,
        }

    def describe(self) -> str:
        """The same in a few words, for people."""
        from gpt2cli.decoders.opening import engine_name

        where = f"{self.placement.device} in {self.precision}"
        return f"{self.title} on {where}, {engine_name(self.placement)} engine"


def _reopen(
    source: Source, placement: Placement, offline: bool, adapters: tuple[Chosen, ...]
) -> LoadedModel:
    return LoadedModel(source, placement, offline=offline, adapters=adapters)
