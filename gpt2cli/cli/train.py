"""`gpt2 train`: a GPT-2 of your own, from a text file."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import options
from gpt2cli.cli.files import read_file
from gpt2cli.cli.terminal import Output, complain, is_watched, notice
from gpt2cli.config import Spec, did_you_mean, find_spec, known_names, load_spec
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.training import Report, Trainer


def train(
    config: Annotated[
        str,
        typer.Option(
            "--config",
            "-c",
            metavar="NAME",
            autocompletion=options.complete_config,
            help="YAML file, or the name of a shipped config.",
        ),
    ],
    data: Annotated[
        Path, typer.Option("--data", "-d", metavar="FILE", help="UTF-8 text to learn from.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Directory for the model.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run exactly.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Optimiser steps. [default: the config's]")
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
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of("float32", "bfloat16", "float16"),
            help="Precision on disk: float32, bfloat16 or float16.",
        ),
    ] = "float32",
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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Report each validation, terminal or not.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a GPT-2 of your own from a text file.

    Its vocabulary comes first, then its weights.

    The last part of the text is held out to measure bits per byte; the best model so far
    is what DIR holds. Ctrl-C saves and stops; --resume goes on from there. The directory
    loads with --model DIR, and in transformers.

    \b
    Examples:
      gpt2 train --config bard --data shakespeare.txt --out my-bard
      gpt2 train --config mine.yaml --data book.txt --out mine --steps 500 --dtype bfloat16
    """
    from gpt2cli.device import DTYPES, check_names, limit_threads, place

    check_names(device, dtype)
    if save_dtype not in DTYPES:
        raise UsageError(f"--save-dtype must be {', '.join(DTYPES)}, not {save_dtype!r}")
    spec = _with_overrides(
        _load(config),
        {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed},
    )
    if dtype == "float16":
        raise UsageError("training needs float32 or bfloat16; float16 gradients vanish")
    placement = place(device, dtype)
    text = read_file(data)
    if threads is not None:
        limit_threads(threads)
    notice("encoding the text" if resume else "learning a vocabulary and encoding the text")
    import torch

    from gpt2cli import training

    run = training.open_run(
        spec,
        text,
        out,
        resume=resume,
        placement=placement,
        save_dtype=getattr(torch, save_dtype),
    )
    with _stop_on_ctrl_c() as should_stop:
        _follow(run, run.run(should_stop), as_json, verbose)
        if should_stop():
            complain(f"stopped after step {run.step} and saved; --resume goes on from there")
            raise KeyboardInterrupt
    notice(f"done; try: gpt2 generate --model {out}", asked=verbose)


def _load(config: str) -> Spec:
    if config.endswith((".yaml", ".yml")):
        return load_spec(Path(config))
    if spec := find_spec(config):
        return spec
    raise UsageError(
        f"there is no config {config!r}; give a YAML file or a name of `gpt2 models`"
        f"{did_you_mean(config, known_names())}"
    )


def _with_overrides(spec: Spec, given: dict[str, int | float | None]) -> Spec:
    overrides = {key: value for key, value in given.items() if value is not None}
    return replace(spec, training=replace(spec.training, **overrides))  # type: ignore[arg-type]


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop after the step; the second is final."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(run: Trainer, reports: Iterator[Report], as_json: bool, verbose: bool) -> None:
    """Show a run as it goes: bars on a terminal's stderr, JSON on stdout if asked for."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    output = Output()
    console = Console(stderr=True, highlight=False)
    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[bits]} bits/byte"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not is_watched()) as bars:
        task = bars.add_task(
            "", total=run.settings.steps, completed=run.step, loss=0.0, bits="-", speed=0.0
        )
        for report in reports:
            bars.update(task, completed=report.step, loss=report.loss)
            bars.update(task, speed=report.tokens_per_second)
            if as_json:
                output.write(json.dumps(asdict(report)) + "\n")
            if report.bits_per_byte is not None:
                bars.update(task, bits=f"{report.bits_per_byte:.3f}")
                if verbose or is_watched():
                    bars.console.print(_line(report))


def _line(report: Report) -> str:
    best = ", the best so far: saved" if report.best else ""
    return (
        f"step {report.step}: training {report.loss:.3f}, validation {report.val_loss:.4f} "
        f"nats a token, {report.bits_per_byte:.4f} bits a byte{best}"
    )
