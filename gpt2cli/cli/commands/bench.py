"""`gpt2 bench`: how fast a model is here, and how fast it could be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.progress import download_progress
from gpt2cli.cli.io.terminal import Output, is_watched, notice
from gpt2cli.cli.render import bench_view
from gpt2cli.cli.render.drawing import check_picture
from gpt2cli.errors import GPT2CLIError
from gpt2cli.files import check_writable, write_file

if TYPE_CHECKING:
    from gpt2cli.analysis.bench import Report
    from gpt2cli.analysis.timing import Plan
    from gpt2cli.api import LoadedModel
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.weights.sources import Source


@dataclass(frozen=True)
class Rounds(Group):
    """What is measured"""

    context: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Tokens to read before decoding. May be given several times. "
            "[default: 32, half and seven eighths of the model's context]",
        ),
    ] = None
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens to decode each time. [default: 50, fewer in short contexts]"
        ),
    ] = None
    repeats: Annotated[
        int,
        typer.Option(metavar="N", help="Measured rounds, after one warm-up; medians are shown."),
    ] = 5
    samples: Annotated[
        int,
        typer.Option("--samples", "-s", metavar="N", help="Continuations, decoded as one batch."),
    ] = 1
    sequences: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Measure N texts of different lengths at once, too, and a prompt that comes in "
            "meanwhile. May be given several times.",
        ),
    ] = None

    def check(self) -> None:
        """Raise `UsageError` for numbers that are wrong for any model."""
        from gpt2cli.analysis.timing import TOKENS, check_counts

        tokens = TOKENS if self.tokens is None else self.tokens
        counts = self.repeats, self.samples, self.sequences or []
        check_counts(self.context or [], tokens, *counts)

    def plan(self, context_length: int) -> Plan:
        """What is measured of a model. Raises `UsageError` for what does not fit its context."""
        from gpt2cli.analysis.timing import make_plan

        counts = self.repeats, self.samples, self.sequences or []
        return make_plan(context_length, self.context or [], self.tokens, *counts)


@dataclass(frozen=True)
class Shown(Group):
    """Output"""

    as_json: options.Json = False
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Speed by context, and by sequences, as PNG or SVG (needs matplotlib).",
        ),
    ] = None

    def check(self) -> None:
        """Raise `UsageError` if the picture cannot be written."""
        if self.plot is not None:
            check_writable(self.plot)
            check_picture(self.plot, "plot")

    def show(self, facts: dict[str, Any], output: Output) -> None:
        """Print what was measured, and draw it."""
        if self.as_json:
            output.write(json.dumps(facts, ensure_ascii=False) + "\n")
        else:
            bench_view.show(facts)
        if self.plot is not None:
            from gpt2cli.cli.render import speed_plot

            write_file(self.plot, speed_plot.picture(facts, self.plot.suffix.lower()[1:]))


@grouped
def bench(
    *,
    rounds: Rounds,
    where: options.WhereDecoding,
    shown: Shown,
    common: options.Common,
) -> None:
    """Measure how fast a model is here, and how fast it could be.

    Decoding a token reads all weights and the KV cache, so the memory's bandwidth, measured
    in between, divided by those bytes limits the speed; on a machine that is busy with other
    work neither figure means much. The tokens are random, and so are the weights
    of a model that is not in the cache: nothing is fetched for its speed. One prompt is read
    for all samples; decoding counts the tokens of all. Ctrl-C shows what was measured so far.

    \b
    Examples:
      gpt2 bench
      gpt2 bench --model 1558M --precision int4
      gpt2 bench --precision int8 --sequences 1 --sequences 16 --plot speed.png
      gpt2 bench --model bard --precision int8 --context 100 --json
    """
    model = opening.load(where)
    rounds.check()
    shown.check()
    is_random = bool(model.source.spec) and not model.source.directory and not model.adapters
    if model.source.spec or model.source.directory:  # else the context is known after fetching
        rounds.plan(model.config.context_length)
    output = Output()
    if not is_random:
        opening.fetch(model)
    plan = rounds.plan(model.config.context_length)
    begun = time.perf_counter()
    decoder = _open(model, plan, is_random, compiled=where.compile_)
    load_seconds = None if is_random else time.perf_counter() - begun
    report = _measure(decoder, model, plan)
    facts = {
        **model.facts(),
        "weights": "random" if is_random else "real",
        "samples": plan.samples,
        "tokens": plan.tokens,
        "load_s": load_seconds,
        **asdict(report),
    }
    shown.show(facts, output)
    if report.interrupted:
        raise KeyboardInterrupt


def _open(model: LoadedModel, plan: Plan, is_random: bool, *, compiled: bool) -> Decoder:
    """The decoder alone: its speed needs no vocabulary."""
    from gpt2cli.decoders.opening import open_decoder, open_random
    from gpt2cli.decoders.pages import room_for
    from gpt2cli.system.memory import check_random, check_room, check_rows

    config, placement = model.config, model.placement
    longest = plan.contexts[-1] + plan.tokens
    tokens = max(room_for(plan.samples, longest), plan.room(config.context_length))
    if compiled:
        model.check_compile()
    if is_random:
        check_random(config, placement, plan.samples, longest, model.name)
        notice(_why_random(model.source), asked=True)
    else:
        check_rows(config, placement, plan.samples, longest)
    if plan.sequences:
        check_room(config, placement, tokens)
    with download_progress() as progress:
        if is_random:
            return open_random(config, placement, tokens, progress)
        return open_decoder(
            model.directory,
            placement,
            tokens,
            adapters=model.adapters,
            compiled=compiled,
            progress=progress,
        )


def _measure(decoder: Decoder, model: LoadedModel, plan: Plan) -> Report:
    from gpt2cli.analysis.bench import measure

    writer = None
    if plan.sequences:
        writer = _Writer(decoder, model.config.vocab_size, max(plan.sequences) + 1)
    with _progress(plan.measurements) as advance:
        return measure(decoder, model.config, model.placement, plan, writer, advance)


class _Writer:
    """`analysis.load.Writer`: greedy texts that no end of text ends, by the scheduler."""

    def __init__(self, decoder: Decoder, vocab_size: int, most: int) -> None:
        from gpt2cli.config.sampling import SamplingConfig
        from gpt2cli.generation.request import GenerationConfig
        from gpt2cli.generation.scheduler import Scheduler
        from gpt2cli.text.tokenizer import Tokenizer

        # The model may have no vocabulary; what the tokens say does not matter.
        tokenizer = Tokenizer({b"%d" % i: i for i in range(vocab_size)}, {})
        self._scheduler = Scheduler(decoder, tokenizer, max_sequences=most)
        self._config = GenerationConfig(
            SamplingConfig(temperature=0), decoder.context_length, ignore_eos=True
        )

    def add(self, prompt: Sequence[int]) -> int:
        return self._scheduler.add(prompt, self._config)

    def step(self) -> Collection[int]:
        updates = self._scheduler.step()
        for _, update in updates:
            if isinstance(update, GPT2CLIError):
                raise update
        return [number for number, _ in updates]

    def cancel(self, number: int) -> None:
        self._scheduler.cancel(number)


def _why_random(source: Source) -> str:
    """The notice that weights are random, why, and how to get the real ones."""
    if source.repo_id is None:
        return f"{source.name} is measured with random weights, for its config names none"
    return (
        f"{source.name} is measured with random weights, for it is not in the cache; "
        f"its own come with: gpt2 models pull {source.repo_id}"
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if stderr is a terminal.

    It is drawn only between measurements, because drawing would slow them down.
    """
    if not is_watched():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bars:
        task = bars.add_task("measuring", total=total)

        def advance() -> None:
            bars.advance(task)
            bars.refresh()

        yield advance
