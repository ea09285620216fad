"""Many machines: Ray gives prompts to workers, each with an open model of its own.

    import ray
    from gpt2cli.serving.ray import Completer

    rows = ray.data.read_json("prompts.jsonl", lines=True)
    rows.map_batches(
        Completer,
        fn_constructor_kwargs={"model": "124M", "precision": "int8", "max_tokens": 50},
        compute=ray.data.ActorPoolStrategy(size=4),
        num_cpus=2,
        batch_size=32,
    ).write_json("completions")

`gpt2 bulk --ray` uses `Workers`, and writes what they return as it writes its own. Which worker
completes a row changes nothing: its text depends on its own prompt, settings and seed.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2cli import api
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.records import Given
from gpt2cli.serving.results import Lines
from gpt2cli.serving.rows import Reader
from gpt2cli.system.device import limit_threads

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel, Prompt
    from gpt2cli.generation.record import Completion

LOCAL = "local"
BATCH = 32  # prompts that a worker is given at once
AHEAD = 4  # such batches that it has at a time, so that the end of one does not leave it idle


class Completer:
    """Completes the rows of a Ray dataset: for `ray.data.Dataset.map_batches`.

    Rows have a `prompt`, or the field `field`, or the fields of a `template`, and may have settings
    of their own; what is added to them is what `gpt2 bulk` adds. A row's seed comes of `seed` and
    the number in its column `index`, if it has one, as in `gpt2 bulk`; else of its contents.
    `settings` are those of all rows. It computes with as many threads as it has CPUs.
    """

    def __init__(
        self,
        model: str = "124M",
        *,
        precision: str = "auto",
        offline: bool = False,
        field: str | None = None,
        template: str | None = None,
        seed: int = 0,
        index: str = "row",
        **settings: Any,
    ) -> None:
        # Ray's processes have NumPy already, whose threads the engine does not use.
        self._model = api.load(model, precision=precision, offline=offline, threads=_cpus())
        self._reader = Reader(Given(), self._model, field=field, template=template)
        self._seed, self._index, self._settings = seed, index, settings

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Columns in, the same columns and those of the completions out; several at a time."""
        return await asyncio.to_thread(self._complete, batch)

    def _complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        names, lines = list(batch), Lines("jsonl", self._model, "row", ordered=True)
        columns = [np.asarray(column).tolist() for column in batch.values()]
        records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        rows = [self._reader(self._number(record), record) for record in records]
        found = self._model.complete((row.request(self._seed) for row in rows), **self._settings)
        results = [lines.fields(row, each) for row, each in zip(rows, found, strict=True)]
        named = dict.fromkeys(name for result in results for name in result)
        return {name: [result.get(name) for result in results] for name in named}

    def _number(self, record: Mapping[str, Any]) -> int:
        if (number := record.get(self._index)) is not None:
            return int(number)
        return zlib.crc32(json.dumps(record, sort_keys=True, default=str).encode())


class Workers:
    """Completes prompts on a Ray cluster, with the interface of `LoadedModel.complete`.

    `address` is local, auto or that of a cluster; `count` workers share its CPUs. `limits` are
    those of `LoadedModel.batcher`. A worker that dies is replaced, and its prompts are given to
    another. Raises `UsageError` without Ray, or where there is no cluster.
    """

    def __init__(
        self, model: LoadedModel, address: str = LOCAL, count: int = 1, **limits: int | None
    ) -> None:
        self._ray = _connected(address)
        cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)) // count)
        actor = self._ray.remote(num_cpus=cpus, max_restarts=-1, max_task_retries=-1)(_Worker)
        options = actor.options(max_concurrency=AHEAD)
        self._workers = [options.remote(model, cpus) for _ in range(count)]
        self._ray.get([worker.open.remote(limits) for worker in self._workers])

    def complete(
        self, prompts: Iterable[Prompt], *, ordered: bool = True, **settings: Any
    ) -> Iterator[Completion]:
        """The completions, in order or as batches of them finish; prompts are taken as needed."""
        batches = enumerate(_batches(iter(prompts)))
        free = deque(worker for _ in range(AHEAD) for worker in self._workers)
        running: dict[Any, tuple[int, Any]] = {}  # what is awaited: its batch, and by whom
        done: dict[int, list[Completion]] = {}
        following = 0
        while True:
            while free and len(done) < 2 * AHEAD * len(self._workers):
                if (batch := next(batches, None)) is None:
                    break
                worker = free.popleft()
                running[worker.complete.remote(batch[1], settings)] = batch[0], worker
            if not running and not done:
                return
            if running:
                for awaited in self._ray.wait(list(running))[0]:
                    number, worker = running.pop(awaited)
                    free.append(worker)
                    done[number] = self._received(awaited, number)
            while done and (following in done or not ordered):
                yield from done.pop(following if ordered else next(iter(done)))
                following += 1

    def _received(self, awaited: Any, number: int) -> list[Completion]:
        try:
            found: list[Completion] = self._ray.get(awaited)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, GPT2CLIError) else error from None
        except self._ray.exceptions.RayError as error:
            raise GPT2CLIError(f"Ray failed: {str(error).splitlines()[0]}") from error
        for completion in found:
            completion.index += number * BATCH
        return found


class _Worker:
    """An open model in a process of Ray's."""

    def __init__(self, model: LoadedModel, threads: int) -> None:
        limit_threads(threads)
        self._model = model

    def open(self, limits: Mapping[str, int | None]) -> None:
        """Load the weights, for a batch of these limits."""
        self._model.batcher(**limits)

    def complete(self, prompts: list[Prompt], settings: Mapping[str, Any]) -> list[Completion]:
        """Several calls at a time share one batch of the model's."""
        return list(self._model.complete(prompts, **settings))


def _batches(prompts: Iterator[Prompt]) -> Iterator[list[Prompt]]:
    while batch := list(islice(prompts, BATCH)):
        yield batch


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("ray is not installed: pip install 'gpt2cli[ray]'", "ray") from None
    _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        options["include_dashboard"] = False
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"there is no Ray cluster at {address}: {reason}", "ray") from None
    return ray


def _check_reachable(address: str) -> None:
    """Raise `UsageError` where nobody listens at HOST:PORT, for which Ray would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"there is no Ray cluster at {address}: {error}", "ray") from None


def _cpus() -> int:
    """The CPUs that Ray has assigned to this worker; it starts each with one unless asked."""
    import ray

    context: Any = ray.get_runtime_context()
    cpus = int(context.get_assigned_resources().get("CPU", 1)) or 1
    if cpus == 1 and (os.cpu_count() or 1) > 1:
        warnings.warn(
            "this worker computes with 1 thread; num_cpus of map_batches gives it more",
            stacklevel=3,
        )
    return cpus
