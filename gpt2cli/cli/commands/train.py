"""`gpt2 train`: a GPT-2 of your own, from a text file."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.terminal import complain, notice
from gpt2cli.cli.render import train_view
from gpt2cli.config.spec import Spec, find_spec, known_names, load_spec
from gpt2cli.errors import UsageError, did_you_mean
from gpt2cli.files import read_file
from gpt2cli.system.device import check_device, limit_threads, place
from gpt2cli.system.precision import PRECISIONS, parse

if TYPE_CHECKING:
    from gpt2cli.training.state import Plan
    from gpt2cli.training.trainer import Trainer


_FLOATS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Run(Group):
    """Run"""

    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="NAME",
            autocompletion=options.complete_config,
            help="YAML file, or the name of a shipped config.",
        ),
    ] = None
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="FILE", help="UTF-8 text to learn from.")
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in DIR exactly; it knows its settings and where its text was.",
        ),
    ] = False


@dataclass(frozen=True)
class Recipe(Group):
    """Recipe"""

    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimiser steps; with --resume, a new number of them in all, to whose end the "
            "learning rate then falls. [default: the config's]",
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per step. [default: the config's]")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(metavar="N", help="Peak learning rate. [default: the config's]")
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Random seed. [default: the config's]")
    ] = None
    save_precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of(*_FLOATS),
            help="Precision on disk: fp32, bf16 or fp16. [default: fp32]",
        ),
    ] = None

    def given(self) -> dict[str, int | float]:
        """Settings of the training by name."""
        names = ("batch_size", "learning_rate", "seed", "steps")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Computing(Group):
    """Machine"""

    device: options.Device = "auto"
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of("auto", "fp32", "bf16"),
            help="auto (bf16 on GPUs that have it, else fp32), fp32 or bf16.",
        ),
    ] = "auto"
    threads: options.Threads = None


Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="DIR", rich_help_panel="Run", help="Directory for the model."
    ),
]


JsonSteps = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel="Output", help="Print one JSON object per line and step."
    ),
]


@grouped
def train(
    *,
    out: Out,
    run: Run,
    recipe: Recipe,
    computing: Computing,
    as_json: JsonSteps = False,
    messages: options.Messages,
) -> None:
    """Train a GPT-2 of your own from a text file.

    Its vocabulary comes first, then its weights.

    The last part of the text is held out to measure bits per byte; the best model so far
    is what DIR holds. Ctrl-C and SIGTERM save and stop; --resume continues from there, and with
    more --steps trains a finished model longer. The directory loads with --model DIR, and in
    transformers.

    \b
    Examples:
      gpt2 train --config bard --data shakespeare.txt --out my-bard
      gpt2 train --config mine.yaml --data book.txt --out mine --steps 500 --precision bf16
      gpt2 train --out my-bard --resume
    """
    if computing.threads is not None:
        limit_threads(computing.threads)
    check_device(computing.device)
    precision = _precision(computing.precision)
    from gpt2cli.training.state import read_position

    position = read_position(out) if run.resume else None
    plan = _plan(position.plan if position else None, run, recipe)
    placement = place(computing.device, plan.precision if precision == "auto" else precision)
    plan = replace(plan, precision=placement.precision)
    if position:
        position.check_goes_on_as(plan)
        if position.step == plan.training.steps:
            notice(f"{out} has had its {position.step} steps; more --steps continue it", asked=True)
            return
    text = _read_text(Path(plan.data), moved=run.data is not None or position is None)
    notice("encoding the text" if run.resume else "learning a vocabulary")

    from gpt2cli.training.run import open_run

    opened = open_run(plan, text, out, device=placement.device, resume=run.resume)
    with opened as trainer, _stop_on_signals() as stop:
        _follow(trainer, stop, as_json=as_json, verbose=messages.verbose)
    notice(f"done; try: gpt2 generate --model {shlex.quote(str(out))}", asked=True)


def _precision(name: str) -> str:
    """The precision to compute in. Raises `UsageError` for one that training does not support."""
    precision = parse(name, ("auto", *PRECISIONS))
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(
            f"training needs precision fp32 or bf16; gradients in {precision} vanish", "precision"
        )
    return precision


def _follow(trainer: Trainer, stop: _Stop, *, as_json: bool, verbose: bool) -> None:
    """Train and show progress. Raises `SystemExit` if a signal came first."""
    if verbose:
        _tell_of(trainer)
    begin, started = trainer.step, time.perf_counter()
    train_view.follow(trainer, trainer.run(stop), as_json)
    if verbose:
        took = time.perf_counter() - started
        notice(f"{trainer.step - begin} steps in {took:,.1f} s", asked=True)
    if trainer.step < trainer.settings.steps:
        complain(f"stopped after step {trainer.step} and saved; --resume continues from there")
        raise SystemExit(128 + stop.signal)


def _plan(before: Plan | None, run: Run, recipe: Recipe) -> Plan:
    """A new run's plan, or that of the run `before`, changed by what is given.

    Precisions are auto where they are not known yet. The number of steps is the old one unless
    given, for a command may have set it then. Raises `UsageError` for what is missing.
    """
    from gpt2cli.training.state import Plan

    if before is None or not before.data:
        for value, option in ((run.config, "--config NAME"), (run.data, "--data FILE")):
            if value is None:
                why = " to resume a run of an older version" if before else ""
                raise UsageError(f"train needs {option}{why}")
    spec = _load(run.config) if run.config else None
    if spec:
        plan = Plan(spec.model, spec.training)
    else:
        assert before is not None
        plan = before
    given = recipe.given()
    if before:
        given = {"steps": before.training.steps} | given
    saved = before.save_precision if before else ""
    if recipe.save_precision is not None:
        saved = parse(recipe.save_precision, _FLOATS, "save_precision")
    where = os.path.abspath(run.data) if run.data else before.data if before else ""
    return replace(
        plan,
        training=replace(plan.training, **given),  # type: ignore[arg-type]
        precision=(before.precision if before else "") or "auto",
        save_precision=saved or "fp32",
        data=where,
    )


def _read_text(path: Path, moved: bool) -> str:
    if not moved and not path.exists():
        raise UsageError(f"the run's text, {path}, is gone; --data FILE tells where it is now")
    return read_file(path)


def _tell_of(run: Trainer) -> None:
    """The parameters, tokens and device of a run, as text."""
    parameters = sum(p.numel() for p in run.model.parameters())
    notice(
        f"{parameters:,} parameters, {len(run.corpus.train):,} tokens to learn from and "
        f"{len(run.corpus.val) - 1:,} held out, on {run.device} in {run.plan.precision}",
        asked=True,
    )


def _load(config: str) -> Spec:
    if config.endswith((".yaml", ".yml")):
        return load_spec(Path(config))
    if spec := find_spec(config):
        return spec
    raise UsageError(
        f"there is no config {config!r}; give a YAML file or a name of `gpt2 models`"
        f"{did_you_mean(config, known_names())}"
    )


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
