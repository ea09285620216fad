"""Progress bars on stderr, if it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpt2cli.cli.io.terminal import is_terminal, is_watched, visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from gpt2cli.progress import Progress


@contextmanager
def token_progress(
    total: int, *, written: bool = False, unit: str = "tokens"
) -> Iterator[Callable[[int], None]]:
    """A transient bar on stderr that advances by tokens, or another unit, if it is a terminal.

    There is no bar if stdout is `written` to meanwhile, and is a terminal.
    """
    if not is_watched() or (written and is_terminal(sys.stdout)):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(unit, total=total)
        yield lambda tokens: bars.advance(task, tokens)


@contextmanager
def count_progress(unit: str, *, written: bool = False) -> Iterator[Callable[[int], None]]:
    """A transient count on stderr of what nobody knows the number of, if stderr is a terminal.

    There is none if stdout is `written` to meanwhile, and is a terminal.
    """
    if not is_watched() or (written and is_terminal(sys.stdout)):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{{task.completed:,}} {unit}"), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(unit, total=None)
        yield lambda count: bars.advance(task, count)


@contextmanager
def row_progress(
    total: int | None, *, written: bool = False
) -> Iterator[Callable[[int, str], None]]:
    """A transient bar on stderr of rows done and time left, if stderr is a terminal.

    It is told how many rows are done, and a few words to show beside. There is no bar if stdout
    is `written` to meanwhile, and is a terminal.
    """
    if not is_watched() or (written and is_terminal(sys.stdout)):
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows, {task.fields[words]}", markup=False),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("rows", total=total, words="")
        yield lambda rows, words: bars.update(task, completed=rows, words=words)


@contextmanager
def download_progress() -> Iterator[Progress | None]:
    """A progress bar per file on stderr while files are fetched, if stderr is a terminal.

    Most runs fetch nothing, and then nothing is imported or drawn.
    """
    if not is_watched():
        yield None
        return
    bars: RichProgress | None = None
    tasks: dict[str, TaskID] = {}

    def update(name: str, done: int, total: int) -> None:
        nonlocal bars
        if bars is None:
            bars = _transfer_bars()
            bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(visible(name), total=total)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield update
    finally:
        if bars is not None:
            bars.stop()


def _transfer_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
