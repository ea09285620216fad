"""A bulk run: the rows of a file completed many at once, each written down as it is done.

The output is the journal: a run that was stopped, or killed at any moment, continues after the
rows that it holds, and the end is the same to the byte. That holds because a row's text depends
on its own prompt, settings and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt2cli.generation.request import new_seed
from gpt2cli.serving import journal, state
from gpt2cli.serving.job import Job, Progress, Steps, completed, finish
from gpt2cli.serving.journal import Journal, Place
from gpt2cli.serving.retry import find, retry
from gpt2cli.serving.state import State

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel


def stream(
    model: LoadedModel, job: Job, write: Callable[[bytes], object], progress: Progress
) -> Steps:
    """Complete all rows and write their lines somewhere that cannot be continued."""
    progress.seed = new_seed() if job.seed is None else job.seed
    rows = ((key, job.reader(index, record)) for key, index, record in job.records())
    for _, row, found, line in completed(model, job, rows, progress):
        write(line)
        progress.add(row, found)
        yield progress


def run(model: LoadedModel, job: Job, place: Place, state: State, progress: Progress) -> Steps:
    """Complete the rows that the output lacks; say after each how far the run is.

    `state` is that of `state.begin`, and `place` is locked.
    """
    progress.seed = state.seed
    written = journal.scan(place.lines, ordered=job.ordered)
    progress.rows, progress.errors = written.count, written.errors
    left = (found for found in job.records() if not written.has(found[0]))
    rows = ((key, job.reader(index, record)) for key, index, record in left)
    with Journal(place.lines) as lines:
        for _, row, found, line in completed(model, job, rows, progress):
            lines.write(line)
            progress.add(row, found)
            yield progress
    finish(place, state, progress)


def start(
    model: LoadedModel,
    job: Job,
    place: Place,
    progress: Progress,
    *,
    overwrite: bool = False,
    retry_errors: bool = False,
) -> Steps:
    """Begin a run, or continue it, or retry the rows that failed; nothing is done twice.

    The model has been fetched. Raises `UsageError` for an output that is not of this run, and
    `GPT2CLIError` while another run writes it.
    """
    with place.locked():
        facts = state.describe(model, job.facts())
        if retry_errors:
            found = find(place, facts)
            is_done = not found.rows_and_errors[1]
        else:
            if overwrite:
                place.clear()
            else:
                state.check_new(place, job.source)
            found = state.begin(place, facts, job.seed)
            is_done = found.is_finished(place)
        if not is_done:
            yield from (retry if retry_errors else run)(model, job, place, found, progress)
            return
        progress.is_finished, progress.seed = True, found.seed
        progress.rows, progress.errors = found.rows_and_errors
