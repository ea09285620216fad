"""Several processes that serve one address: each has the model, whose weights they share in memory.

All accept from one socket, so a process takes a connection when it has time for one.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from socket import socket
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING

from gpt2cli.errors import GPT2CLIError
from gpt2cli.system.device import limit_threads
from gpt2cli.threads import thread_count

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.http.settings import Options

_KILL_SECONDS = 35.0  # that a process may take to end, a little more than it may drain
_TOO_SOON = 10.0  # seconds; a process that fails within them will fail again


def serve(
    model: LoadedModel,
    listener: socket,
    options: Options,
    count: int,
    *,
    ready: Callable[[], None] = lambda: None,
    tell: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve with `count` processes, as `server.serve` does with one.

    A process that dies is begun anew. Raises `GPT2CLIError` if one fails soon after it has begun.
    """
    with tempfile.TemporaryDirectory(prefix="gpt2-metrics-") as shared:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        if "OMP_NUM_THREADS" not in os.environ:
            limit_threads(max(1, thread_count() // count))
        _Workers(model, listener, options, count, ready, tell).run()


class _Workers:
    def __init__(
        self,
        model: LoadedModel,
        listener: socket,
        options: Options,
        count: int,
        ready: Callable[[], None],
        tell: Callable[[str], object],
    ) -> None:
        self._given = model, listener, options, tell
        self._ready, self._tell = ready, tell
        self._processes: list[tuple[SpawnProcess, Connection, float]] = []
        self._is_ending = self._is_failed = False
        self._not_ready = count

    def run(self) -> None:
        """Begin all, and watch them until a signal comes."""
        before = {s: signal.signal(s, self._end) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._processes = [self._begin() for _ in range(self._not_ready)]
            while self._processes:
                self._watch()
        finally:
            for process, _, _ in self._processes:
                process.kill()
            for sig, handler in before.items():
                signal.signal(sig, handler)
        if self._is_failed:
            raise GPT2CLIError("a process of the server has failed; see above")

    def _begin(self) -> tuple[SpawnProcess, Connection, float]:
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(*self._given, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours, time.monotonic()

    def _watch(self) -> None:
        """Wait for news of a process: that it is ready, or has ended."""
        news = [c for _, c, _ in self._processes if not c.closed]
        wait([*news, *(process.sentinel for process, _, _ in self._processes)], timeout=1.0)
        for i, (process, connection, begun) in reversed(list(enumerate(self._processes))):
            if not connection.closed and connection.poll():
                self._hear(connection)
            if process.exitcode is None:
                continue
            del self._processes[i]
            if self._is_ending:
                continue
            if process.exitcode and time.monotonic() - begun < _TOO_SOON:
                self._is_failed = True
                self._stop()
            else:
                self._tell(f"process {process.pid} has ended ({process.exitcode}); begun anew")
                self._processes.append(self._begin())

    def _hear(self, connection: Connection) -> None:
        try:
            connection.recv()
        except EOFError:
            connection.close()
            return
        connection.close()
        self._not_ready -= 1
        if self._not_ready == 0:
            self._ready()

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on; the second one ends the processes at once."""
        if self._is_ending:
            for process, _, _ in self._processes:
                process.kill()
        else:
            self._stop()

    def _stop(self) -> None:
        self._is_ending = True
        for process, _, _ in self._processes:
            process.terminate()


def _work(
    model: LoadedModel,
    listener: socket,
    options: Options,
    tell: Callable[[str], object],
    ready: Connection,
) -> None:
    """What a process does."""
    from gpt2cli.serving.http.server import serve

    def watch_parent() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    try:
        serve(
            model,
            listener,
            options,
            ready=lambda: ready.send(None),
            tell=tell,
            signals=(signal.SIGTERM,),
        )
    except GPT2CLIError as error:
        tell(f"error: {error}")
        raise SystemExit(1) from None
