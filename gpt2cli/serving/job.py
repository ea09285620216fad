"""What a bulk run does with its rows, whether they are all of a file or those that failed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError
from gpt2cli.records import Input, Record
from gpt2cli.serving import results
from gpt2cli.serving.journal import Place
from gpt2cli.serving.results import Lines
from gpt2cli.serving.rows import Reader, Row
from gpt2cli.serving.state import State

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.record import Completion
    from gpt2cli.serving.ray import Workers


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `part` from 1 of `parts`: every `parts`-th row. Its rows are those of the whole."""

    part: int = 1
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "i/n". Raises `UsageError` for anything else."""
        part, _, parts = text.partition("/")
        if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
            return cls(int(part), int(parts))
        raise UsageError(f"shard must be i/n such as 2/8, i from 1 to n, not {text!r}", "shard")

    def __contains__(self, index: int) -> bool:
        return index % self.parts == self.part - 1

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"


@dataclass(frozen=True)
class Job:
    """What a run does with its rows.

    `settings` are those of all rows, as `LoadedModel.complete` takes them. `seed` makes those of
    the rows; without one it is drawn when the run begins.
    """

    source: Input
    reader: Reader
    format: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    shard: Shard = field(default_factory=Shard)
    ordered: bool = True
    max_sequences: int | None = None
    batch_tokens: int | None = None
    workers: Workers | None = None  # that complete the prompts in place of the model here

    @property
    def limits(self) -> dict[str, int | None]:
        """Those of `LoadedModel.batcher`."""
        return {"max_sequences": self.max_sequences, "batch_tokens": self.batch_tokens}

    def records(self) -> Iterator[tuple[int, int, Record]]:
        """The records of the shard: what a journal knows each by, its index, and itself."""
        mine = (found for found in self.source.records() if found[0] in self.shard)
        for position, (index, record) in enumerate(mine):
            yield position if self.ordered else index, index, record

    def facts(self) -> dict[str, Any]:
        """What decides about the output, besides the model, by the names of settings."""
        constraint = self.settings.get("constraint")
        biases = self.settings.get("bias") or {}
        return {
            **self.settings,
            "constraint": constraint and {constraint.kind: constraint.source},
            "bias": {str(i): str(amount) for i, amount in biases.items()} or None,
            "input": self.source.identity(),
            "lines": self.source.kind == "lines",
            "field": self.reader.field,
            "prompt_template": self.reader.template and self.reader.template.text,
            "format": self.format,
            "unordered": not self.ordered,
            "shard": str(self.shard),
        }

    def count(self) -> int:
        """How many rows there are, by a pass over the file."""
        return sum(1 for _ in self.records())


@dataclass(slots=True)
class Progress:
    """How far a run is: `rows` and `errors` of the whole output, the rest of this run alone.

    `is_finished` is true where there was nothing left to do.
    """

    rows: int = 0
    errors: int = 0
    new_rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seed: int | None = None
    is_finished: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the run was started or continued."""
        return time.perf_counter() - self.started

    def add(self, row: Row, found: Completion) -> None:
        """Count a row that is written."""
        self.rows, self.new_rows = self.rows + 1, self.new_rows + 1
        self.errors += row.error is not None or found.error is not None
        self.prompt_tokens += found.prompt_tokens
        self.completion_tokens += sum(len(sample.token_ids) for sample in found.samples)

    def summary(self) -> dict[str, Any]:
        """All of it by name, and the speed."""
        seconds = self.seconds
        return {
            "rows": self.rows,
            "errors": self.errors,
            "new_rows": self.new_rows,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": seconds,
            "tokens_per_second": self.completion_tokens / seconds if self.new_rows else None,
            "seed": self.seed,
        }


Steps = Generator[Progress, None, None]
"""Says after each row how far a run is; to be closed if it is not followed to its end."""


def finish(place: Place, state: State, progress: Progress) -> None:
    """Make the output of its lines if it is not that already, and note the end.

    The lines are kept beside it while there are rows to retry.
    """
    if place.is_converted:
        results.convert(place.lines, place.target, place.format)
    state.finished = {
        "rows": progress.rows,
        "errors": progress.errors,
        "bytes": place.size,
    }
    state.write(place)
    if place.is_converted and not progress.errors:
        place.lines.unlink()


def completed(
    model: LoadedModel, job: Job, rows: Iterator[tuple[int, Row]], progress: Progress
) -> Iterator[tuple[int, Row, Completion, bytes]]:
    """Each row with its key, when it is complete, and its line; `progress` has the seed.

    The time of the run begins when the model is open.
    """
    waiting: dict[int, tuple[int, Row]] = {}
    lines = Lines(job.format, model, job.source.unit, ordered=job.ordered)

    def prompts() -> Iterator[dict[str, Any]]:
        for position, (key, row) in enumerate(rows):
            waiting[position] = key, row
            yield row.request(progress.seed or 0)

    complete = (job.workers or model).complete
    every = complete(prompts(), ordered=job.ordered, **job.limits, **job.settings)
    progress.started = time.perf_counter()
    for found in every:
        key, row = waiting.pop(found.index)
        yield key, row, found, lines.line(row, found)
