"""The rows of a bulk run that failed, completed once more.

Their new lines go to OUTPUT.retry.jsonl, a journal of its own, and into the output all at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import atomic, json_line
from gpt2cli.serving import journal, results
from gpt2cli.serving.job import Job, Progress, Steps, completed, finish
from gpt2cli.serving.journal import Journal, Place, Written
from gpt2cli.serving.rows import Row
from gpt2cli.serving.state import State

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel


def find(place: Place, facts: dict[str, Any]) -> State:
    """The run whose rows are to be retried; `place` is locked.

    Input and settings may have changed since. Raises `UsageError` for a run that has not ended,
    and for lines of another format or shard.
    """
    state = State.read(place)
    # A retry that was killed may have put its lines in their places already.
    if state is None or not (state.is_finished(place) or place.retried.exists()):
        raise UsageError(f"{place.target} is no finished run; finish it before --retry-errors")
    for name in ("format", "unordered", "shard"):
        if state.facts[name] != facts[name]:
            raise UsageError(
                f"{name} was {state.facts[name]} in the run and cannot become {facts[name]}", name
            )
    return state


def retry(model: LoadedModel, job: Job, place: Place, state: State, progress: Progress) -> Steps:
    """Complete the rows that failed; their new lines take the place of the old.

    Raises `GPT2CLIError` if the input has another number of rows, and leaves the output as it was.
    """
    progress.seed = state.seed if job.seed is None else job.seed
    written = journal.scan(place.lines, ordered=job.ordered)
    progress.rows = written.count - written.errors
    done = {record["key"] for record in journal.records(place.retried)}
    with Journal(place.retried) as lines:
        rows = _failed(job, written, done)
        for key, row, found, line in completed(model, job, rows, progress):
            lines.write(json_line({"key": key, "line": json.loads(line)}))
            progress.add(row, found)
            yield progress
    _replace(place, ordered=job.ordered)
    after = journal.scan(place.lines, ordered=job.ordered)
    progress.rows, progress.errors = after.count, after.errors
    state.facts["input"] = job.source.identity()
    finish(place, state, progress)
    place.retried.unlink()


def _failed(job: Job, written: Written, done: set[int]) -> Iterator[tuple[int, Row]]:
    count = 0
    for key, index, record in job.records():
        count += 1
        if written.has_failed(key) and key not in done:
            yield key, job.reader(index, record)
    if count != written.count:
        raise GPT2CLIError(
            f"the input has {count:,} rows and the output {written.count:,}; retrying needs the "
            "same rows in the same places"
        )


def _replace(place: Place, *, ordered: bool) -> None:
    """Put the new lines in the place of those that failed, all at once."""
    offsets, end = {}, 0
    with place.retried.open("rb") as stream:
        for line in stream:
            offsets[json.loads(line)["key"]] = end
            end += len(line)
    with (
        place.retried.open("rb") as stream,
        place.lines.open("rb") as before,
        atomic(place.lines) as temporary,
        temporary.open("wb") as file,
    ):
        for position, line in enumerate(before):
            record = json.loads(line)
            offset = offsets.get(position if ordered else record["row"])
            if offset is not None and results.has_failed(record):
                stream.seek(offset)
                line = json_line(json.loads(stream.readline())["line"])
            file.write(line)
