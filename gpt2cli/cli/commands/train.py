"""`gpt2 train`: a GPT-2 of your own, from your texts."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import options, trying
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.progress import count_progress
from gpt2cli.cli.io.terminal import be_quiet, complain, notice, use_colour
from gpt2cli.cli.render import train_view
from gpt2cli.cli.render.drawing import check_picture
from gpt2cli.cli.training_options import Computing, Data, Lora, Recipe, Run, fetched, make_plan
from gpt2cli.errors import UsageError
from gpt2cli.files import check_writable, write_file
from gpt2cli.system.device import Placement, check_device, limit_threads, place, probe
from gpt2cli.system.precision import PRECISIONS, parse

if TYPE_CHECKING:
    from gpt2cli.training.log import Log
    from gpt2cli.training.state import Plan, Position
    from gpt2cli.training.trainer import Report, Trainer


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
            check_picture(self.plot, "plot")


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
    rank, world, is_restarted = _environment()
    if rank:
        be_quiet()
    check_device(computing.device)
    precision = _precision(computing.precision)
    following.check()
    from gpt2cli.training.state import STATE_FILE, check_directory, read_position

    if is_restarted and (out / STATE_FILE).exists():
        run = replace(run, resume=True)
    position = read_position(out) if run.resume else None
    if position is None:
        check_directory(out)
    plan = make_plan(position.plan if position else None, run, data, lora, recipe, computing)
    if precision == "auto":
        precision = plan.precision
    placement = place(computing.device, precision)
    if placement == Placement("cpu", "bf16"):
        probe(placement)
    computing.check_devices(placement.device, world, plan.training.batch_size)
    plan = replace(plan, precision=placement.precision)
    _check_data(plan, moved=bool(data.data) or position is None)
    if position and _has_ended(position, plan):
        notice(f"{out} has had its {position.step} steps; more --steps continue it", asked=True)
        return
    if plan.base and (run.run is not None or position):
        fetched(plan.base, computing)
    notice("reading the text" if run.resume or plan.base else "learning a vocabulary")
    given = frozenset(recipe.given()) if run.base else None
    computing = replace(computing, device=placement.device)
    work = _Work(plan, out, run.resume, given, computing, following, messages)
    if computing.devices > 1:
        from gpt2cli.training.launch import launch

        launch(_train, computing.devices, work)
    else:
        _train(work)


def _environment() -> tuple[int, int, bool]:
    """What torchrun says: which process this is, of how many, and whether all were begun anew."""
    names = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    values = (os.environ.get(name, "") for name in names)
    rank, world, restarts = (int(value) if value.isdecimal() else 0 for value in values)
    return (rank, world, restarts > 0) if world > 1 else (0, 1, False)


@dataclass(frozen=True)
class _Work:
    """What each process of a run is to do; of the settings of its pace, `given` were chosen."""

    plan: Plan
    out: Path
    resume: bool
    given: frozenset[str] | None
    computing: Computing
    following: Following
    messages: options.Messages


def _train(work: _Work) -> None:
    """Train as one of the processes that the environment names; the first speaks for all."""
    from gpt2cli.training.distributed import device_of, joined
    from gpt2cli.training.run import PACE, open_run

    computing, messages = work.computing, work.messages
    device, shard = device_of(computing.device), computing.shard
    given = PACE if work.given is None else work.given
    with joined(device, shard=shard, threads=computing.threads) as group:
        if messages.quiet or not group.is_main:
            be_quiet()
        use_colour(messages.color)
        reading = ExitStack()
        opened = open_run(
            work.plan,
            work.out,
            device=device,
            resume=work.resume,
            given=given,
            advance=reading.enter_context(count_progress("tokens")),
            group=group,
        )
        with reading, opened as trainer, _stop_on_signals(alone=group.world == 1) as stop:
            reading.close()
            if messages.verbose or trainer.plan.base:
                train_view.tell_of(trainer)
            _follow(trainer, stop, work)


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


def _follow(trainer: Trainer, stop: _Stop, work: _Work) -> None:
    """Train to the end, and tell of it. Raises `SystemExit` if a signal came first."""
    from gpt2cli.training.log import LOG_FILE, Log

    following, is_main = work.following, trainer.group.is_main
    log = Log(following.log or work.out / LOG_FILE, trainer.position) if is_main else None
    begin, started = trainer.step, time.perf_counter()
    reports = _watched(trainer, stop, log, following)
    try:
        if is_main:
            train_view.follow(trainer, reports, following.as_json)
        else:
            deque(reports, maxlen=0)
    finally:
        if log is not None and following.plot is not None:
            _plot(trainer, log, following.plot)
    if work.messages.verbose:
        took = time.perf_counter() - started
        notice(f"{trainer.step - begin} steps in {took:,.1f} s", asked=True)
    if not trainer.finished:
        number = int(trainer.group.highest(stop.signal))
        if is_main:
            complain(f"stopped after step {trainer.step} and saved; --resume continues from there")
        raise SystemExit(128 + number)
    with trainer.whole():
        if log is not None:
            _tell_of_end(trainer, log, work.out, following)


def _watched(
    trainer: Trainer, stop: _Stop, log: Log | None, following: Following
) -> Iterator[Report]:
    """The reports of a run, which the first process writes down, with samples in between."""
    every = following.sample_every
    for report in trainer.run(stop):
        if log is not None:
            log.write(report)
        yield report
        first = report.step == 0 and trainer.plan.base
        if first or (every is not None and report.step and report.step % every == 0):
            title = "before" if first else f"step {report.step}"
            with trainer.whole():
                if log is not None:
                    _sample(trainer, title, following.sample_prompt)


def _sample(trainer: Trainer, title: str, prompt: str | None) -> None:
    ids = trying.default_prompt(trainer) if prompt is None else trainer.tokenizer.encode(prompt)
    begin = trainer.tokenizer.beginning()
    prompt = trainer.tokenizer.decode([i for i in ids if i != begin])
    trying.show(title, prompt, trying.write(trainer, ids))


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
def _stop_on_signals(*, alone: bool) -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; the second is final.

    One of several processes may get a signal from a terminal and from who has begun it, who also
    ends it if it is to end at once.
    """
    stop = _Stop()

    def ask(number: int, _: object) -> None:
        if stop() and alone:
            raise SystemExit(128 + number)
        stop.signal = stop.signal or number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
