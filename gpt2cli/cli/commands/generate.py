"""`gpt2 generate`: continue a prompt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import choosing, opening, options
from gpt2cli.cli.drafting import Drafting
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.intervening import Changes
from gpt2cli.cli.io.progress import token_progress
from gpt2cli.cli.io.terminal import Output, complain, complain_of_dropped, notice
from gpt2cli.cli.render import generation_view
from gpt2cli.cli.render.explain_view import show_stages
from gpt2cli.errors import UsageError
from gpt2cli.files import append_to_file, check_writable, read_file

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.generation.record import Recorder
    from gpt2cli.generation.request import Event, GenerationConfig


@dataclass(frozen=True)
class Limits(options.Limits):
    """Length and stopping"""

    samples: Annotated[
        int,
        options.setting(
            "--samples", "-s", metavar="N", help="Continuations, generated as one batch."
        ),
    ] = 1
    overflow: Annotated[
        str,
        options.setting(
            "--overflow",
            metavar="NAME",
            autocompletion=options.one_of("slide", "error"),
            help="When the context is full: slide drops the oldest tokens, error stops at once.",
        ),
    ] = "slide"

    def given(self) -> dict[str, Any]:
        """Settings by name. Raises `UsageError` for an unknown overflow."""
        if self.overflow not in ("slide", "error"):
            raise UsageError(f"overflow must be slide or error, not {self.overflow!r}", "overflow")
        return {**super().given(), "samples": self.samples}


@dataclass(frozen=True)
class Shown(Group):
    """Output"""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line and sample.")
    ] = False
    echo: Annotated[
        bool | None,
        typer.Option("--echo/--no-echo", help="Print the prompt too. [default: on a terminal]"),
    ] = None
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print at the end, not token by token.")
    ] = False
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="With --file: continue it as it is, and append the text to it."
        ),
    ] = False
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="N",
            help="With --json: log-probabilities of each token and of the N best in its place, "
            "by the model, before sampling changed any.",
        ),
    ] = None
    explain_sampling: Annotated[
        bool,
        typer.Option(
            "--explain-sampling",
            help="Show what each rule does to the first token's candidates; generate nothing.",
        ),
    ] = False

    def check(self, limits: Limits, search: choosing.Search, draft: choosing.Draft) -> None:
        """Raise `UsageError` for what cannot go together."""
        if self.logprobs is not None and not self.as_json:
            raise UsageError("--logprobs needs --json, which is where they appear")
        others = [name for name in ("as_json", "explain_sampling") if getattr(self, name)]
        others += ["samples"] if limits.samples > 1 else []
        if self.append and others:
            raise UsageError(
                f"append and {others[0]} cannot go together; leave one of them out",
                "append",
                others[0],
            )
        if self.explain_sampling and search.beams is not None:
            raise UsageError("--beams samples nothing that --explain-sampling could explain")
        if self.explain_sampling and draft.draft is not None:
            raise UsageError(
                "--explain-sampling is about the first token, which no --draft proposes"
            )


@grouped
def generate(
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Text to continue; - reads stdin. Piped text comes before it."
        ),
    ] = None,
    source: options.PromptSource,
    limits: Limits,
    sampling: choosing.Sampling,
    search: choosing.Search,
    constraint: choosing.Constraint,
    draft: choosing.Draft,
    changes: Changes,
    shown: Shown,
    where: options.WhereDecoding,
    messages: options.Messages,
) -> None:
    """Continue a prompt with GPT-2; without one, begin from nothing.

    The text streams to stdout. On a terminal the prompt is shown too and control
    characters are made visible; into a pipe goes the bare continuation, byte for byte.
    With --ablate or --steer PyTorch computes, slower than the engine that a CPU has otherwise.

    \b
    Examples:
      gpt2 generate "Hello, I'm a language model," -n 50
      gpt2 generate --model bard --temperature 0 "ROMEO:"
      cat notes.txt | gpt2 generate "In short:" --stop "." --json
      gpt2 generate -s 3 --seed 7 "The best thing about Mondays is"
      gpt2 generate "Is water wet? Answer:" --choice " yes" --choice " no"
      gpt2 generate -m 1558M --draft 124M --precision int8 "In a shocking finding,"
      gpt2 generate -m 124M --adapter tuned --adapter verse=0.5 "Once upon a time"
      gpt2 generate --file story.txt --append
      gpt2 generate -m bard "ROMEO:" --ablate 2.3 --ablate mlp.1

    \b
    In a loop that reads from a pipe, the first command would read all lines; avoid that with:
      ls | while read -r p; do gpt2 generate -- "$p" < /dev/null; done
    """
    given = _Given(
        source, limits, sampling, search, constraint, draft, changes, shown, where, messages
    )
    run = _prepared(given, prompt, Output())
    if shown.explain_sampling:
        run.explain()
    else:
        run.generate()


@dataclass(frozen=True)
class _Given:
    """All options of the command."""

    source: options.PromptSource
    limits: Limits
    sampling: choosing.Sampling
    search: choosing.Search
    constraint: choosing.Constraint
    draft: choosing.Draft
    changes: Changes
    shown: Shown
    where: options.WhereDecoding
    messages: options.Messages


def _prepared(given: _Given, prompt: str | None, output: Output) -> _Run:
    """Check everything, the cheapest first; weights are fetched last."""
    source, limits, shown, where = given.source, given.limits, given.shown, given.where
    shown.check(limits, given.search, given.draft)
    given.changes.check()
    model = opening.load(where)
    drafting = Drafting(given.draft, where)
    config = model.configure(
        **limits.given(),
        **given.sampling.given(model.sampling),
        **given.search.given(),
        logprobs=shown.logprobs,
        constraint=given.constraint.resolve(),
    )
    drafting.check(config)
    biases = given.sampling.biases()
    text = _continued(source, prompt) if shown.append else source.read(prompt)
    if where.compile_:
        model.check_compile()
        notice("compiling the decoding step takes a minute or more", asked=given.messages.verbose)
    opening.fetch(model, vocabulary_only=True)
    drafting.check_vocabulary(model)
    config = replace(config, bias=choosing.resolve_biases(biases, model))
    ids = model.encode(text, special=source.special)
    model = given.changes.applied(model, text, ids)
    window = model.fit(ids, limits.max_tokens, limits.overflow)
    complain_of_dropped(len(ids) - len(window))
    choices = _Choices(
        given.constraint.choices() if shown.as_json else [], text, model, source.special
    )
    return _Run(given, model, drafting, config, text, window, choices, output)


@dataclass
class _Run:
    """One generation: its inputs and its output."""

    given: _Given
    model: LoadedModel
    drafting: Drafting
    config: GenerationConfig
    text: str
    window: list[int]
    choices: _Choices
    output: Output

    def explain(self) -> None:
        """Show what each rule of sampling does, and generate nothing."""
        from gpt2cli.generation import loop

        self._fetch()
        tokenizer = self.model.tokenizer
        stages = loop.explain(self._open(), tokenizer, self.window, self.config)
        show_stages(stages, tokenizer, self.output, as_json=self.given.shown.as_json)

    def generate(self) -> None:
        """Generate, print and report; after Ctrl-C `KeyboardInterrupt` is raised in the end."""
        from gpt2cli.generation.record import Recorder

        config, shown, verbose = self.config, self.given.shown, self.given.messages.verbose
        self._fetch()
        begun = time.perf_counter()
        decoder = self._open()
        load_seconds = time.perf_counter() - begun
        recorder = Recorder(config.samples, streamed=config.beams is None)
        interrupted = self._show(recorder.watch(self._events(decoder)), recorder)
        facts = self._facts(load_seconds, recorder)
        if shown.as_json:
            chances = {} if interrupted else self.choices.weigh(decoder)
            generation_view.print_json(self.text, config, facts, recorder, chances, self.output)
        if verbose:
            complain(generation_view.summary(self.model.describe(), facts, recorder))
        if self.given.sampling.seed is None and config.sampling.temperature > 0:
            notice(f"seed {config.seed} (--seed {config.seed} repeats this)", asked=verbose)
        if interrupted:
            raise KeyboardInterrupt
        if config.constraint:
            recorder.check_matched(config.max_tokens)

    @property
    def _capacity(self) -> int:
        """The tokens that the KV cache needs room for per text."""
        longest = max(len(self.window) + self.config.max_tokens, self.choices.longest)
        return min(longest, self.model.config.context_length)

    def _fetch(self) -> None:
        """Fetch the weights, unless what is asked for could not fit the memory."""
        from gpt2cli.system.memory import check_beams, check_rows

        model, config = self.model, self.config
        check, rows = (check_beams, config.beams) if config.beams else (check_rows, config.samples)
        check(model.config, model.placement, rows, self._capacity)
        opening.fetch(self.model)
        self.drafting.fetch()

    def _open(self) -> Decoder:
        """The model's decoder, and the draft's."""
        from gpt2cli.decoders.pages import room_for

        config, where = self.config, self.given.where
        decoder = opening.open_decoder(
            self.model,
            room_for(config.beams or config.samples, self._capacity),
            compiled=where.compile_,
            verbose=self.given.messages.verbose,
        )
        self.drafting.open()
        return decoder

    def _events(self, decoder: Decoder) -> Iterator[Event]:
        if self.config.beams is None:
            return self.drafting.generate(decoder, self.model, self.window, self.config)
        return self._searched(decoder)

    def _searched(self, decoder: Decoder) -> Iterator[Event]:
        """The results of beam search, with a bar while it searches."""
        from gpt2cli.generation import beam

        tokenizer = self.model.tokenizer
        with token_progress(self.config.max_tokens) as advance:
            found = list(beam.generate(decoder, tokenizer, self.window, self.config, advance))
        yield from found

    def _show(self, events: Iterator[Event], recorder: Recorder) -> bool:
        """Print as it comes, or at the end; True if Ctrl-C came first."""
        config, shown, output = self.config, self.given.shown, self.output
        if shown.append and self.given.source.file:
            events = _appended(events, self.given.source.file)
        prompt = self.text if (output.terminal if shown.echo is None else shown.echo) else ""
        whole = shown.as_json or shown.no_stream or config.samples > 1 or config.beams is not None
        if not whole:
            return generation_view.stream(events, output, prompt)
        interrupted = generation_view.exhaust(events, config)
        if not shown.as_json:
            texts = [prompt + sample.text for sample in recorder.samples]
            generation_view.print_samples(texts, output)
        return interrupted

    def _facts(self, load_seconds: float, recorder: Recorder) -> dict[str, Any]:
        """What is needed to repeat the run, and its timings."""
        config = self.config
        return {
            **self.model.facts(),
            "prompt_token_ids": self.window,
            "compiled": self.given.where.compile_,
            "seed": config.seed,
            "sampling": asdict(config.sampling),
            "max_tokens": config.max_tokens,
            "samples": config.samples,
            "stop": list(config.stop),
            "ignore_eos": config.ignore_eos,
            "min_tokens": config.min_tokens,
            # JSON has no −∞.
            "bias": {str(i): b if isfinite(b) else str(b) for i, b in config.bias.items()},
            "dry_breakers": list(config.dry_breakers),
            "beams": config.beams,
            "length_penalty": config.length_penalty,
            "constraint": {c.kind: c.source} if (c := config.constraint) else None,
            "overflow": self.given.limits.overflow,
            "draft": self.drafting.facts(),
            "timings": {
                "load_s": load_seconds,
                "time_to_first_token_s": recorder.time_to_first_token,
                "tokens_per_second": recorder.tokens_per_second,
            },
        }


class _Choices:
    """The texts of --choice in tokens, to be ranked by the model after one was chosen."""

    def __init__(
        self, texts: Sequence[str], prompt: str, model: LoadedModel, special: bool
    ) -> None:
        self._texts = list(dict.fromkeys(texts))
        self._rows: list[list[int]] = []
        self._shared = 0
        if self._texts:
            from gpt2cli.analysis import ranking

            self._rows, self._shared = ranking.encode(
                model.tokenizer, prompt, self._texts, model.config.context_length, special=special
            )
        self.longest = max(map(len, self._rows), default=0)

    def weigh(self, decoder: Decoder) -> dict[str, dict[str, Any]]:
        """The model's probability of each choice, as in `gpt2 score --choice`."""
        if not self._texts:
            return {}
        from gpt2cli.analysis import ranking

        found = ranking.rank_choices(decoder, self._rows, self._shared, self._texts)
        return {
            c.text: {"text": c.text, "log_probability": c.log_probability, "share": c.share}
            for c in found
        }


def _continued(source: options.PromptSource, prompt: str | None) -> str:
    """The text of a file to be continued in place. Raises `UsageError` if it cannot be."""
    file = source.file
    if file is None or source.argument(prompt) is not None:
        raise UsageError("--append needs a --file that is all of the prompt")
    if file.exists() and not file.is_file():
        raise UsageError(f"cannot append to {file}: it is no regular file")
    check_writable(file)
    return read_file(file)


def _appended(events: Iterator[Event], file: Path) -> Iterator[Event]:
    """Pass events on, after writing their text to the file."""
    for event in events:
        append_to_file(file, event.text)
        yield event
