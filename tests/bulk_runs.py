"""What the tests of bulk runs share: a model that completes at once, and runs of it.

`complete` stands in for `LoadedModel.complete`: what it writes depends on prompt, settings and
seed alone, it pulls prompts as it needs them, and unordered completions come out of order.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gpt2cli import api
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.generation.record import Completion, Sample
from gpt2cli.generation.request import ChosenLogprob, Event, FinishReason, Logprob
from gpt2cli.records import Input
from gpt2cli.serving import bulk
from gpt2cli.serving.job import Job, Progress
from gpt2cli.serving.journal import Place
from gpt2cli.serving.results import choose_format
from gpt2cli.serving.rows import Reader, is_openai

WINDOW = 4  # prompts in work at once
DELAY = float(os.environ.get("COMPLETION_SECONDS", "0"))


def complete(
    self: api.LoadedModel,
    prompts: Iterable[Any],
    *,
    ordered: bool = True,
    max_sequences: int | None = None,
    batch_tokens: int | None = None,
    **settings: Any,
) -> Iterator[Completion]:
    """Complete without computing."""
    window: list[Completion] = []
    for index, prompt in enumerate(prompts):
        window.append(_complete(self, index, prompt, settings))
        if len(window) == WINDOW:
            if DELAY:
                time.sleep(DELAY)
            yield from window if ordered else reversed(window)
            window = []
    yield from window


def _complete(
    model: api.LoadedModel, index: int, prompt: Any, settings: Mapping[str, Any]
) -> Completion:
    given = {**settings, **(prompt if isinstance(prompt, Mapping) else {"prompt": prompt})}
    text, seed = given.pop("prompt"), given.get("seed", 0)
    given.pop("overflow", None)
    try:
        config = model.configure(**given)
        if not isinstance(text, str | list):
            raise UsageError("a prompt is text or token ids")
    except GPT2CLIError as error:
        return Completion(index, seed, 0, [], error)
    ids = model.encode(text) if isinstance(text, str) else text
    texts = [_text(f"{ids} {config} {i}", config) for i in range(config.samples)]
    samples = [_sample(i, text, config, model) for i, text in enumerate(texts)]
    return Completion(index, config.seed, len(ids), samples)


def _text(what: str, config: Any) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:8][: config.max_tokens]


def _sample(index: int, text: str, config: Any, model: api.LoadedModel) -> Sample:
    """A sample of one token per character."""
    ids = {c: model.encode(c)[0] for c in {*text, *"xyz"}}
    top = tuple(Logprob(c, ids[c], -2.0 - i) for i, c in enumerate("xyz"[: config.logprobs]))
    sample = Sample()
    for place, c in enumerate(text, start=1):
        logprob = None if config.logprobs is None else ChosenLogprob(c, ids[c], -1.5, top)
        reason: FinishReason | None = "length" if place == len(text) else None
        sample.add(Event(index, ids[c], c, reason, logprob))
    return sample


def job_of(source: Path, output: Path, **changes: Any) -> tuple[api.LoadedModel, Job, Place]:
    """A run from a file to a file; `changes` are fields of `Job`, and `field` and `template`."""
    model = api.load("bard")
    read = {name: changes.pop(name) for name in ("field", "template") if name in changes}
    records = Input(str(source), lines=changes.pop("lines", False))
    asked = choose_format(changes.pop("format", None), str(output), is_openai(records))
    reader = Reader(records, model, given=changes.get("settings", ()), **read)
    job = Job(records, reader, asked, **({"seed": 7} | changes))
    return model, job, Place(output, asked)


def run(source: Path, output: Path, *, stop_after: int | None = None, **changes: Any) -> Progress:
    """Begin or continue a run, to its end or until it has written some rows more."""
    how = {name: changes.pop(name, False) for name in ("overwrite", "retry_errors")}
    model, job, place = job_of(source, output, **changes)
    progress = Progress()
    with patch.object(api.LoadedModel, "complete", complete, create=True):
        steps = bulk.start(model, job, place, progress, **how)
        for _ in steps:
            if progress.new_rows == stop_after:
                break
        steps.close()
    return progress


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """A JSONL file of these rows; text is written as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """The command `gpt2`, which completes without computing."""
    from gpt2cli.cli import main as command

    with patch.object(api.LoadedModel, "complete", complete, create=True):
        sys.argv[0] = "gpt2"
        command()


if __name__ == "__main__":
    main()
