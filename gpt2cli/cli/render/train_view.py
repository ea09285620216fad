"""Views of a training run: a status line on a terminal, and a line per validation."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import Output, is_watched, log, notice
from gpt2cli.cli.render import loss_plot

if TYPE_CHECKING:
    from rich.progress import Progress, Task

    from gpt2cli.training.trainer import Report, Trainer

_BAR = "━" * 10  # stands for the bar, at its narrowest
_WIDEST_BAR = 40
_PREFIX = len("gpt2: ")

Part = tuple[int, str]
"""A rank and a piece of a line: the higher the rank, the sooner it is left out."""


def follow(run: Trainer, reports: Iterator[Report], as_json: bool) -> None:
    """Show the progress of a run: on stderr, and as JSON on stdout if asked for."""
    output = Output()
    with _status_line() as bars:
        task = bars.add_task("", total=run.settings.steps, completed=run.step)
        for report in reports:
            if report.loss is not None:
                bars.update(task, completed=report.step, loss=report.loss)
                bars.update(task, speed=report.tokens_per_second)
                if (share := _utilisation(run, report)) is not None:
                    bars.update(task, mfu=share)
            if as_json:
                output.write(json.dumps(asdict(report)) + "\n")
            if report.bits_per_byte is not None:
                bars.update(task, bits=report.bits_per_byte)
                notice(validation_line(report, _width() - _PREFIX), asked=True)


def _utilisation(run: Trainer, report: Report) -> float | None:
    """The part of the GPU's speed that is used, if it is known."""
    if run.device.type != "cuda" or run.plan.precision != "bf16":
        return None
    import torch

    from gpt2cli.system.peaks import model_flops_utilisation

    gpu, speed = torch.cuda.get_device_name(run.device), report.tokens_per_second
    return model_flops_utilisation(run.config, speed, gpu, lora=run.plan.lora is not None)


def tell_of(run: Trainer) -> None:
    """What is trained, on what, for how long, and the memory that it takes, as text."""
    from gpt2cli.training.fitting import free_memory, needed

    settings, corpus = run.settings, run.corpus
    total = sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    what = f"{trained:,} of {total:,} parameters" if trained < total else f"{total:,} parameters"
    held_out = int(corpus.validation.targets.sum())
    notice(
        f"{what}, {corpus.targets:,} tokens to learn from and {held_out:,} held out, "
        f"on {run.device} in {run.plan.precision}",
        asked=True,
    )
    epochs = settings.steps * settings.batch_size / corpus.rows
    at_once = (
        f", {settings.micro_batch} at once" if settings.micro_batch < settings.batch_size else ""
    )
    device, processes = str(run.device), run.group.world
    each = f" in each of {processes} processes" if processes > 1 else ""
    memory = needed(run.plan, run.config, device, run.group) / 1e9
    free = free_memory(device, run.group) / 1e9
    notice(
        f"{settings.steps:,} steps of {settings.batch_size} sequences{at_once}: {epochs:.3g} "
        f"epochs; about {memory:,.1f} GB of memory{each}, {free:,.1f} GB free",
        asked=True,
    )


def tell_of_change(records: Sequence[Mapping[str, Any]], *, early: bool) -> None:
    """The loss curve, and validation before and after."""
    if is_watched():
        for line in loss_plot.lines(records, int(min(_width(), 80))):
            log(line)
    known = [record for record in records if record["val_loss"] is not None]
    if not known:
        return
    first, best = known[0], min(known, key=lambda record: record["val_loss"])
    if early:
        notice("validation has not improved for a while, so that training ended early", asked=True)
    if best is first:
        notice("no validation was better than the first; the model has not improved", asked=True)
    notice(
        f"validation: {first['val_loss']:.3f} before, {best['val_loss']:.3f} at its best "
        f"(step {best['step']}): {first['bits_per_byte']:.3f} and {best['bits_per_byte']:.3f} "
        "bits/byte",
        asked=True,
    )


def validation_line(report: Report, width: float) -> str:
    """The results of a validation, as far as they fit, in a fixed format."""
    parts = [(0, f"step {report.step}:")]
    parts += [] if report.loss is None else [(3, f"loss {report.loss:.3f},")]
    parts += [(2, f"val {report.val_loss:.3f},"), (0, f"{report.bits_per_byte:.3f} bits/byte,")]
    parts += [(1, "saved")] if report.best else []
    return " ".join(fitting(parts, width)).rstrip(",")


def fitting(parts: Sequence[Part], width: float) -> list[str]:
    """The pieces that fit side by side with a space between, all of rank 0 among them."""
    kept = list(parts)
    while sum(len(text) + 1 for _, text in kept) - 1 > width and any(rank for rank, _ in kept):
        kept.remove(max(kept, key=lambda part: part[0]))
    return [text for _, text in kept]


def _width() -> float:
    """The width of stderr in columns; unlimited if it is not a terminal."""
    if not is_watched():
        return math.inf
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def _status_line() -> Progress:
    """A line that follows the steps, on terminals that can write a line anew."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    console = Console(stderr=True, highlight=False)

    class Status(ProgressColumn):
        def render(self, task: Task) -> Table:
            shown = fitting(status(task), console.width)
            rest = console.width - sum(len(text) + 1 for text in shown) + 1 + len(_BAR)
            bar = ProgressBar(task.total or 0, task.completed, width=min(rest, _WIDEST_BAR))
            row = Table.grid(padding=(0, 1, 0, 0))
            for _ in shown:
                row.add_column(no_wrap=True)
            row.add_row(*(bar if text == _BAR else text for text in shown))
            return row

    disabled = not is_watched() or console.is_dumb_terminal
    return Progress(Status(), console=console, disable=disabled)


def status(task: Task) -> list[Part]:
    """The pieces of the status line, without figures not yet known."""
    parts = [(0, f"{task.completed:.0f}/{task.total:.0f}"), (5, _BAR)]
    for rank, name, form in (
        (1, "loss", "loss {:.3f}"),
        (2, "bits", "{:.3f} bits/byte"),
        (4, "speed", "{:,.0f} tokens/s"),
        (6, "mfu", "{:.0%} MFU"),
    ):
        if name in task.fields:
            parts.append((rank, form.format(task.fields[name])))
    if task.time_remaining is not None:
        parts.append((3, f"{timedelta(seconds=math.ceil(task.time_remaining))} left"))
    return parts
