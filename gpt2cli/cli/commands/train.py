"""`gpt2 train`: a GPT-2 of your own, from your texts."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import options, trying
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.terminal import complain, notice
from gpt2cli.cli.render import train_view
from gpt2cli.cli.training_options import Computing, Data, Lora, Recipe, Run, fetched, make_plan
from gpt2cli.errors import UsageError
from gpt2cli.files import check_writable, write_file
from gpt2cli.system.device import check_device, limit_threads, place
from gpt2cli.system.precision import PRECISIONS, parse

if TYPE_CHECKING:
    from gpt2cli.training.log import Log
    from gpt2cli.training.state import Plan, Position
    from gpt2cli.training.trainer import Report, Trainer

_PICTURES = (".png", ".svg")

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        rich_help_panel="Run",
        help="Directory for the model, or its adapter.",
    ),
]


@dataclass(frozen=True)
class Following(Group):
    """Output"""

    sample_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What the model continues before and after. [default: held out]"
        ),
    ] = None
    sample_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show a sample every N steps, too.")
    ] = None
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A line per step, as JSONL or CSV. [default: DIR/log.jsonl]"
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The loss curve, as PNG or SVG (needs matplotlib)."),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line and step.")
    ] = False

    def check(self) -> None:
        """Raise `UsageError` for files that cannot be written."""
        for path in (self.log, self.plot):
            if path is not None:
                check_writable(path)
        if self.plot is not None:
            from importlib.util import find_spec

            if self.plot.suffix.lower() not in _PICTURES:
                raise UsageError(f"plot must end in .png or .svg, not {self.plot.name}", "plot")
            if find_spec("matplotlib") is None:
                raise UsageError(
                    "plot needs matplotlib; install it with: pip install 'gpt2cli[plot]'", "plot"
                )


@grouped
def train(
    *,
    out: Out,
    run: Run,
    data: Data,
    lora: Lora,
    recipe: Recipe,
    computing: Computing,
    following: Following,
    messages: options.Messages,
) -> None:
    """Fine-tune a model on your texts, or train one from scratch.

    With --from, all of a model is trained, or with --lora a small adapter of it. With --config
    a vocabulary is learned first, and then a model of that size.

    A part of the texts is held out to measure bits per byte; the best model so far
    is what DIR holds. Ctrl-C and SIGTERM save and stop; --resume continues from there, and with
    more --epochs or --steps trains a finished model longer. DIR loads with --model, or --adapter,
    and in transformers and PEFT.

    \b
    Examples:
      gpt2 train --from 124M --data book.txt --out mine
      gpt2 train --from 124M --lora --data answers.jsonl --epochs 2 --out tuned
      gpt2 train --config bard --data shakespeare.txt --out my-bard
      gpt2 train --out mine --resume
    """
    if computing.threads is not None:
        limit_threads(computing.threads)
    check_device(computing.device)
    precision = _precision(computing.precision)
    following.check()
    from gpt2cli.training.state import check_directory, read_position

    position = read_position(out) if run.resume else None
    if position is None:
        check_directory(out)
    plan = make_plan(position.plan if position else None, run, data, lora, recipe, computing)
    if precision == "auto":
        precision = plan.precision
    placement = place(computing.device, precision)
    plan = replace(plan, precision=placement.precision)
    _check_data(plan, moved=bool(data.data) or position is None)
    if position and _has_ended(position, plan):
        notice(f"{out} has had its {position.step} steps; more --steps continue it", asked=True)
        return
    if plan.base and (run.run is not None or position):
        fetched(plan.base, computing)
    notice("reading the text" if run.resume or plan.base else "learning a vocabulary")
    _train(plan, out, placement.device, run, recipe, following, messages.verbose)


def _train(
    plan: Plan,
    out: Path,
    device: str,
    run: Run,
    recipe: Recipe,
    following: Following,
    verbose: bool,
) -> None:
    from gpt2cli.training.log import LOG_FILE, Log
    from gpt2cli.training.run import PACE, open_run

    given = frozenset(recipe.given()) if run.base else PACE
    opened = open_run(plan, out, device=device, resume=run.resume, given=given)
    with opened as trainer, _stop_on_signals() as stop:
        if verbose or trainer.plan.base:
            train_view.tell_of(trainer)
        log = Log(following.log or out / LOG_FILE, trainer.step)
        _follow(trainer, stop, log, following, verbose=verbose)
        _tell_of_end(trainer, log, out, following)


def _check_data(plan: Plan, *, moved: bool) -> None:
    """Raise `UsageError` for files that cannot be read."""
    from gpt2cli.training.documents import Documents, Fields

    for name in (*plan.data.files, *plan.data.validation):
        if not moved and not Path(name).exists():
            raise UsageError(f"the run's text, {name}, is gone; --data FILE tells where it is now")
        Documents([name], Fields.parse(plan.data.fields))


def _has_ended(position: Position, plan: Plan) -> bool:
    """Whether a run has ended, and nothing says that it is to go on."""
    before, now = position.plan.training, plan.training
    is_same = (before.steps, before.epochs, before.patience) == (
        now.steps,
        now.epochs,
        now.patience,
    )
    return is_same and (position.step == now.steps or position.ended_early)


def _precision(name: str) -> str:
    """The precision to compute in. Raises `UsageError` for one that training does not support."""
    precision = parse(name, ("auto", *PRECISIONS))
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(
            f"training needs precision fp32 or bf16; gradients in {precision} vanish", "precision"
        )
    return precision


def _follow(
    trainer: Trainer, stop: _Stop, log: Log, following: Following, *, verbose: bool
) -> None:
    """Train and show progress. Raises `SystemExit` if a signal came first."""
    begin, started = trainer.step, time.perf_counter()
    try:
        train_view.follow(trainer, _watched(trainer, stop, log, following), following.as_json)
    finally:
        if following.plot is not None:
            _plot(trainer, log, following.plot)
    if verbose:
        took = time.perf_counter() - started
        notice(f"{trainer.step - begin} steps in {took:,.1f} s", asked=True)
    if not trainer.finished:
        complain(f"stopped after step {trainer.step} and saved; --resume continues from there")
        raise SystemExit(128 + stop.signal)


def _watched(trainer: Trainer, stop: _Stop, log: Log, following: Following) -> Iterator[Report]:
    """The reports of a run, which are written down, with samples in between."""
    every = following.sample_every
    for report in trainer.run(stop):
        log.write(report)
        yield report
        first = report.step == 0 and trainer.plan.base
        if first or (every is not None and report.step and report.step % every == 0):
            _sample(trainer, "before" if first else f"step {report.step}", following.sample_prompt)


def _sample(trainer: Trainer, title: str, prompt: str | None) -> None:
    ids = trying.default_prompt(trainer) if prompt is None else trainer.tokenizer.encode(prompt)
    trying.show(title, trainer.tokenizer.decode(ids), trying.write(trainer, ids))


def _plot(trainer: Trainer, log: Log, path: Path) -> None:
    from gpt2cli.cli.render import loss_plot

    title = f"gpt2 train · {trainer.directory}"
    write_file(path, loss_plot.picture(log.records, title, path.suffix.lower()[1:]))


def _tell_of_end(trainer: Trainer, log: Log, out: Path, following: Following) -> None:
    """What the run has changed, and how to try it."""
    base, adapted = trainer.plan.base, trainer.plan.lora is not None
    if base:
        train_view.tell_of_change(log.records, early=trainer.position.ended_early)
    if base or following.sample_prompt is not None:
        trainer.load_best()
        _sample(trainer, "after", following.sample_prompt)
    model = ["--model", base, "--adapter", str(out)] if adapted else ["--model", str(out)]
    notice(f"done; try: gpt2 generate {shlex.join(model)}", asked=True)


class _Stop:
    """The signal that asked to stop after the current step, if any."""

    signal = 0

    def __call__(self) -> bool:
        return bool(self.signal)


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; the second is final."""
    stop = _Stop()

    def ask(number: int, _: object) -> None:
        if stop():
            raise SystemExit(128 + number)
        stop.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
