"""`gpt2 train`: a GPT-2 of your own, from a text file."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import options
from gpt2cli.cli.io.inputs import read_file
from gpt2cli.cli.io.terminal import complain, notice
from gpt2cli.cli.render import train_view
from gpt2cli.config.spec import Spec, find_spec, known_names, load_spec
from gpt2cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from gpt2cli.training.state import Plan
    from gpt2cli.training.trainer import Trainer


def train(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Directory for the model.")
    ],
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="NAME",
            autocompletion=options.complete_config,
            help="YAML file, or the name of a shipped config.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="FILE", help="UTF-8 text to learn from.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in DIR exactly; it knows its settings and where its text was.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimiser steps; with --resume, a new number of them in all, to whose end the "
            "learning rate then falls. [default: the config's]",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per step. [default: the config's]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="N", help="Peak. [default: the config's]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Repeat a run. [default: the config's]")
    ] = None,
    save_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of("float32", "bfloat16", "float16"),
            help="Precision on disk: float32, bfloat16 or float16. [default: float32]",
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of("auto", "float32", "bfloat16"),
            help="auto (bfloat16 on GPUs that have it), float32 or bfloat16.",
        ),
    ] = "auto",
    threads: options.Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line and step.")
    ] = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a GPT-2 of your own from a text file.

    Its vocabulary comes first, then its weights.

    The last part of the text is held out to measure bits per byte; the best model so far
    is what DIR holds. Ctrl-C and SIGTERM save and stop; --resume goes on from there, and with
    more --steps trains a finished model longer. The directory loads with --model DIR, and in
    transformers.

    \b
    Examples:
      gpt2 train --config bard --data shakespeare.txt --out my-bard
      gpt2 train --config mine.yaml --data book.txt --out mine --steps 500 --dtype bfloat16
      gpt2 train --out my-bard --resume
    """
    from gpt2cli.system.device import DTYPES, check_names, limit_threads, place

    if threads is not None:
        limit_threads(threads)
    check_names(device, dtype)
    if save_dtype not in (None, *DTYPES):
        raise UsageError(f"--save-dtype must be {', '.join(DTYPES)}, not {save_dtype!r}")
    if dtype == "float16":
        raise UsageError("training needs float32 or bfloat16; float16 gradients vanish")

    from gpt2cli.training.state import read_position

    position = read_position(out) if resume else None
    given = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "steps": steps}
    before = position.plan if position else None
    plan = _plan(before, config, data, given)
    placement = place(device, plan.dtype if dtype == "auto" and plan.dtype else dtype)
    plan = replace(plan, dtype=placement.dtype, save_dtype=save_dtype or plan.save_dtype)
    if position:
        position.check_goes_on_as(plan)
        if position.step == plan.training.steps:
            notice(f"{out} has had its {position.step} steps; more --steps go on", asked=True)
            return
    text = _read_text(Path(plan.data), moved=data is not None or position is None)
    notice("encoding the text" if resume else "learning a vocabulary")

    from gpt2cli.training.run import open_run

    opened = open_run(plan, text, out, device=placement.device, resume=resume)
    with opened as run, _stop_on_signals() as stop:
        if verbose:
            _tell_of(run)
        begin, started = run.step, time.perf_counter()
        train_view.follow(run, run.run(stop), as_json)
        if verbose:
            took = time.perf_counter() - started
            notice(f"{run.step - begin} steps in {took:,.1f} s", asked=True)
        if run.step < run.settings.steps:
            complain(f"stopped after step {run.step} and saved; --resume goes on from there")
            raise SystemExit(128 + stop.signal)
    notice(f"done; try: gpt2 generate --model {shlex.quote(str(out))}", asked=True)


def _plan(
    before: Plan | None,
    config: str | None,
    data: Path | None,
    given: Mapping[str, int | float | None],
) -> Plan:
    """A new run's plan, or that of the run `before` with what is given in its place.

    Precisions are empty where they are not known yet. The number of steps is the old one
    unless given, for a command may have set it then. Raises `UsageError` for what is missing.
    """
    from gpt2cli.training.state import Plan

    if before is None or not before.data:
        for value, option in ((config, "--config NAME"), (data, "--data FILE")):
            if value is None:
                why = " to resume a run of an older version" if before else ""
                raise UsageError(f"train needs {option}{why}")
    spec = _load(config) if config else None
    if spec:
        plan = Plan(spec.model, spec.training, dtype="", save_dtype="float32")
    else:
        assert before is not None
        plan = before
    if before:
        given = {**given, "steps": given["steps"] or before.training.steps}
        plan = replace(plan, dtype=before.dtype, save_dtype=before.save_dtype or "float32")
    overrides = {key: value for key, value in given.items() if value is not None}
    where = os.path.abspath(data) if data else before.data if before else ""
    return replace(plan, training=replace(plan.training, **overrides), data=where)  # type: ignore[arg-type]


def _read_text(path: Path, moved: bool) -> str:
    if not moved and not path.exists():
        raise UsageError(f"the run's text, {path}, is gone; --data FILE tells where it is now")
    return read_file(path)


def _tell_of(run: Trainer) -> None:
    """What is trained, on how much, where."""
    parameters = sum(p.numel() for p in run.model.parameters())
    notice(
        f"{parameters:,} parameters, {len(run.corpus.train):,} tokens to learn from and "
        f"{len(run.corpus.val) - 1:,} held out, on {run.device} in {run.plan.dtype}",
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
    """Whether to stop after the step, asked for by which signal."""

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
