"""`gpt2 bulk`: complete a file of prompts."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import choosing, opening, options
from gpt2cli.cli.commands import generate
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.inputs import read_argument
from gpt2cli.cli.io.progress import row_progress
from gpt2cli.cli.io.terminal import Output, complain, is_watched, notice
from gpt2cli.errors import GPT2CLIError, UsageError

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.job import Job, Progress, Steps
    from gpt2cli.serving.journal import Place

STDOUT = "-"
QUIET_SECONDS = 10.0  # between lines of progress where there is no bar


@dataclass(frozen=True)
class Prompts(Group):
    """Prompts"""

    field: Annotated[
        str | None,
        typer.Option("--field", metavar="NAME", help="Field of the prompt. [default: prompt]"),
    ] = None
    prompt_template: Annotated[
        str | None,
        typer.Option(
            "--prompt-template", metavar="TEXT", help='Prompt of several: "{title}: {body}".'
        ),
    ] = None
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line is a prompt, an empty one too.")
    ] = False
    shard: Annotated[
        str,
        typer.Option(
            "--shard", metavar="I/N", help="Only every N-th row, from the I-th: part of the whole."
        ),
    ] = "1/1"


@dataclass(frozen=True)
class Limits(generate.Limits):
    """Length and stopping"""

    max_tokens: Annotated[
        int | None,
        options.setting(
            "--max-tokens",
            "-n",
            metavar="N",
            help="Tokens to generate. [default: 100, or 16 for OpenAI's lines]",
        ),
    ] = None  # type: ignore[assignment]
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs", metavar="N", help="Log-probabilities of each token and the N best."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Settings by name, those alone that differ from the usual."""
        given = {**super().given(), "overflow": self.overflow}
        return {name: value for name, value in given.items() if value != _USUAL[name]}


_USUAL = {
    "max_tokens": None,
    "min_tokens": 0,
    "ignore_eos": False,
    "stop": (),
    "samples": 1,
    "overflow": "slide",
}


@dataclass(frozen=True)
class Written(Group):
    """Output"""

    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=options.one_of("jsonl", "openai", "parquet"),
            help="jsonl, openai or parquet. [default: by the names of the files]",
        ),
    ] = None
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Write rows as they are done, each with its number.")
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever OUTPUT holds.")
    ] = False
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="Complete only the rows of OUTPUT that failed, in their places."
        ),
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False


@dataclass(frozen=True)
class Batching(Group):
    """Model and machine"""

    batch_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens computed at once, about.")
    ] = 256
    max_sequences: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Texts written at once, at most.")
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Complete on Ray: local, auto, or a cluster's HOST:PORT."
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --ray: models side by side.")
    ] = None


@grouped
def bulk(
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="JSONL, CSV or Parquet, also .gz or .zst; - reads stdin."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            rich_help_panel="Output",
            help="File, or - for stdout.",
        ),
    ],
    prompts: Prompts,
    limits: Limits,
    sampling: choosing.Sampling,
    constraint: choosing.Constraint,
    written: Written,
    where: options.Where,
    batching: Batching,
    messages: options.Messages,
) -> None:
    """Complete a file of prompts of any size.

    A row of JSONL has a "prompt", text or token ids, and may have settings of its own, such as
    "max_tokens"; all other fields are carried to the output. OpenAI's batch lines for
    /v1/completions work, too. Each row is written when it is done: the same command continues a
    run that was stopped.

    \b
    Examples:
      gpt2 bulk prompts.jsonl -o completions.jsonl -n 50 --seed 1
      gpt2 bulk articles.csv -o summaries.parquet --prompt-template "{title}: {body} TL;DR:"
      gpt2 bulk batch.jsonl -o results.jsonl --unordered
      zcat prompts.txt.gz | gpt2 bulk - --lines -o - | head
    """
    given = _Given(
        source, output, prompts, limits, sampling, constraint, written, where, batching, messages
    )
    _prepared(given).complete()


@dataclass(frozen=True)
class _Given:
    """All options of the command."""

    source: str
    output: str
    prompts: Prompts
    limits: Limits
    sampling: choosing.Sampling
    constraint: choosing.Constraint
    written: Written
    where: options.Where
    batching: Batching
    messages: options.Messages

    def check(self) -> None:
        """Raise `UsageError` for what cannot go together."""
        written, prompts = self.written, self.prompts
        together = [
            ("overwrite", written.overwrite, "retry_errors", written.retry_errors),
            (
                "field",
                prompts.field is not None,
                "prompt_template",
                prompts.prompt_template is not None,
            ),
            ("lines", prompts.lines, "field", prompts.field is not None),
            ("lines", prompts.lines, "prompt_template", prompts.prompt_template is not None),
        ]
        for one, has_one, other, has_other in together:
            if has_one and has_other:
                raise UsageError(
                    f"{one} and {other} cannot go together; leave one of them out", one, other
                )
        if self.output == STDOUT:
            for name in ("overwrite", "retry_errors", "as_json"):
                if getattr(written, name):
                    raise UsageError(f"{name} needs an output that is a file", name)


def _prepared(given: _Given) -> _Run:
    """Check everything, the cheapest first; weights are fetched later."""
    from gpt2cli.records import Input
    from gpt2cli.serving import state
    from gpt2cli.serving.job import Job, Shard
    from gpt2cli.serving.results import choose_format
    from gpt2cli.serving.rows import Reader, is_openai

    given.check()
    given.batching.check_company({"workers": "ray"})
    prompts, written = given.prompts, given.written
    shard = Shard.parse(prompts.shard)
    source = Input(given.source, lines=prompts.lines)
    format = choose_format(written.format, given.output, is_openai(source))
    place = _place(given, format)
    if place and not (written.overwrite or written.retry_errors):
        state.check_new(place, source)
    model = opening.load(given.where)
    settings = _settings(given, model)
    field, template = (
        None if text is None else read_argument(text)
        for text in (prompts.field, prompts.prompt_template)
    )
    reader = Reader(source, model, field=field, template=template, given=settings)
    opening.fetch(model, vocabulary_only=True)
    if biases := choosing.resolve_biases(given.sampling.biases(), model):
        settings["bias"] = biases
    job = Job(
        source,
        reader,
        format,
        settings,
        given.sampling.seed,
        shard,
        ordered=not written.unordered,
        max_sequences=given.batching.max_sequences,
        batch_tokens=given.batching.batch_tokens,
    )
    return _Run(given, model, job, place)


def _place(given: _Given, format: str) -> Place | None:
    """Where the output goes; None for stdout. Raises `UsageError` if it cannot be written."""
    from gpt2cli.serving.journal import Place

    if given.output == STDOUT:
        return None
    place = Place(Path(given.output), format)
    place.check(given.source)
    return place


def _settings(given: _Given, model: LoadedModel) -> dict[str, Any]:
    """The settings of all rows but seed and biases. Raises `UsageError` for a wrong one."""
    settings = {**given.limits.given(), **given.sampling.given(model.sampling)}
    settings |= {"constraint": given.constraint.resolve(), "logprobs": given.limits.logprobs}
    settings = {name: value for name, value in settings.items() if value is not None}
    model.configure(**{name: value for name, value in settings.items() if name != "overflow"})
    settings.pop("seed", None)
    return settings


@dataclass
class _Run:
    """One run, and how it is shown."""

    given: _Given
    model: LoadedModel
    job: Job
    place: Place | None

    def complete(self) -> None:
        """Complete the rows that are left, and say what came out.

        Raises `GPT2CLIError` if rows failed, and `SystemExit` after SIGTERM.
        """
        from gpt2cli.serving.bulk import start, stream
        from gpt2cli.serving.job import Progress

        opening.fetch(self.model)
        self._connect()
        progress, written = Progress(), self.given.written
        if self.place is None:
            write = Output().write_bytes
            self._follow(stream(self.model, self.job, write, progress), progress)
        else:
            steps = start(
                self.model,
                self.job,
                self.place,
                progress,
                overwrite=written.overwrite,
                retry_errors=written.retry_errors,
            )
            self._follow(steps, progress)
        self._conclude(progress)

    def _connect(self) -> None:
        """Start workers on Ray, if that was asked for; say what bounds a batch here."""
        batching = self.given.batching
        if batching.ray is None:
            if self.given.messages.verbose:
                complain(self.model.batcher(**self.job.limits).limits())
            return
        from gpt2cli.serving.ray import Workers

        workers = Workers(self.model, batching.ray, batching.workers or 1, **self.job.limits)
        self.job = replace(self.job, workers=workers)

    def _follow(self, steps: Steps, progress: Progress) -> None:
        """Follow the run to its end, with a bar or some lines; tell what a stop leaves."""
        try:
            with closing(steps), _terminable(), self._shown() as show:
                for step in steps:
                    show(step)
        except (KeyboardInterrupt, SystemExit):
            complain(f"stopped{self._kept(progress)}")
            raise
        except GPT2CLIError as error:
            message = f"{error}{self._kept(progress)}" if progress.new_rows else str(error)
            raise type(error)(message, *error.settings) from error

    @contextmanager
    def _shown(self) -> Iterator[Callable[[Progress], None]]:
        """What shows how far a run is: a bar on a terminal, else with -v a line at times."""
        watched, verbose = is_watched(), self.given.messages.verbose
        total = self.job.count() if watched and not self.job.source.is_stdin else None
        last = time.monotonic()
        with row_progress(total, written=self.place is None) as advance:

            def show(progress: Progress) -> None:
                nonlocal last
                words = _speed(progress)
                advance(progress.rows, words)
                if verbose and not watched and time.monotonic() - last > QUIET_SECONDS:
                    last = time.monotonic()
                    notice(f"{progress.rows:,} rows, {words}", asked=True)

            yield show

    def _kept(self, progress: Progress) -> str:
        """What a run that was stopped leaves, and how it continues."""
        rows = f"{progress.rows:,} row{'s' if progress.rows != 1 else ''}"
        if self.place is None:
            return f" after {rows}"
        kept = f"; {self.given.output} keeps {rows}"
        if self.job.source.is_stdin:
            return f"{kept}, and stdin cannot be read again"
        without = " without --overwrite" if self.given.written.overwrite else ""
        return f"{kept}, and the same command{without} continues after them"

    def _conclude(self, progress: Progress) -> None:
        """The summary. Raises `GPT2CLIError` if the output has errors."""
        if self.given.written.as_json:
            Output().write(json.dumps(progress.summary()) + "\n")
        if progress.is_finished:
            what = "no row failed" if self.given.written.retry_errors else "it is finished"
            notice(f"nothing to do for {self.given.output}: {what}", asked=True)
        else:
            notice(_summary(progress, self.model), asked=self.given.messages.verbose)
        if progress.errors:
            failed = f"{progress.errors:,} of {progress.rows:,} rows"
            again = "" if self.place is None else "; --retry-errors completes them again"
            raise GPT2CLIError(f'{failed} failed, as their "error" says{again}')


def _summary(progress: Progress, model: LoadedModel) -> str:
    found = progress.summary()
    return (
        f"{model.describe()}, {progress.new_rows:,} rows, {progress.completion_tokens:,} tokens in "
        f"{found['seconds']:,.1f} s, {found['tokens_per_second'] or 0:,.0f} tokens/s, "
        f"seed {progress.seed}"
    )


def _speed(progress: Progress) -> str:
    speed = progress.completion_tokens / progress.seconds
    errors = f", errors: {progress.errors:,}" if progress.errors else ""
    return f"{speed:,.0f} tokens/s{errors}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, by an exception: `SystemExit` of 143."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
