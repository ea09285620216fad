"""Several processes that serve one address: each has the model, whose weights they share in memory.

This one begins them, passes signals on and replaces those that die; `worker` is what they do.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING

from prometheus_client.multiprocess import mark_process_dead

from gpt2cli.errors import GPT2CLIError
from gpt2cli.serving.http.server import DRAIN_SECONDS, SIGNALS
from gpt2cli.serving.http.worker import work
from gpt2cli.system.device import limit_threads
from gpt2cli.threads import thread_count

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.http.settings import Options

_KILL_SECONDS = DRAIN_SECONDS + 5  # that a process may take to end


def serve(
    model: LoadedModel,
    listener: socket,
    options: Options,
    *,
    ready: Callable[[], None] = lambda: None,
    tell: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve with `options.workers` processes, as `server.Server` does with one.

    The model must have been fetched, and `tell` is a function of a module. A process that dies is
    begun anew. Raises `GPT2CLIError` if one fails before it is ready.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        limit_threads(max(1, thread_count() // options.workers))
    begin = partial(_begin, model, listener, options, tell)
    with tempfile.TemporaryDirectory(prefix="gpt2-metrics-") as shared:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        _Workers(begin, options, listener, ready, tell).run()


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection  # by which it says None when it is ready, and the error that ends it
    is_ready: bool = False
    error: GPT2CLIError | None = None

    def hear(self) -> None:
        """Take what it has said."""
        try:
            while self.pipe.poll():
                self.error = self.pipe.recv()
                self.is_ready |= self.error is None
        except (EOFError, OSError):  # it has ended
            return


def _begin(
    model: LoadedModel, listener: socket, options: Options, tell: Callable[[str], object]
) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = model, listener, options, tell, theirs
    process = context.Process(target=work, args=arguments, daemon=True)
    # A terminal sends Ctrl-C to all processes, and only this one is to act on it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return _Worker(process, ours)


class _Workers:
    def __init__(
        self,
        begin: Callable[[], _Worker],
        options: Options,
        listener: socket,
        ready: Callable[[], None],
        tell: Callable[[str], object],
    ) -> None:
        self._begin, self._options, self._listener = begin, options, listener
        self._ready, self._tell = ready, tell
        self._workers: list[_Worker] = []
        self._signals = 0
        self._end: float | None = None  # when those that have not ended are killed
        self._error: GPT2CLIError | None = None

    def run(self) -> None:
        """Begin all, and watch them until a signal comes. Raises the error of one that fails."""
        before = {sig: signal.signal(sig, self._count_signal) for sig in SIGNALS}
        try:
            for _ in range(self._options.workers):
                self._workers.append(self._begin())
            while self._workers:
                self._watch()
        finally:
            self._kill()
            for sig, handler in before.items():
                signal.signal(sig, handler)
        if self._error is not None:
            raise self._error

    def _watch(self) -> None:
        """Wait a moment for news, and act on them."""
        starting = [w.pipe for w in self._workers if not w.is_ready]
        wait([*starting, *(w.process.sentinel for w in self._workers)], timeout=0.1)
        for worker in list(self._workers):
            code = worker.process.exitcode  # read first, so that nothing it says comes later
            was_ready = worker.is_ready
            worker.hear()
            if code is not None:
                self._replace(worker, code)
            elif worker.is_ready and not was_ready and self._all_ready():
                self._ready()
                self._ready = lambda: None
        if self._signals and self._end is None:
            if not self._options.quiet:
                self._tell(f"ending in {DRAIN_SECONDS} s at most; once more ends at once")
            self._stop()
        if self._signals > 1 or (self._end is not None and time.monotonic() > self._end):
            self._kill()

    def _all_ready(self) -> bool:
        return self._end is None and all(worker.is_ready for worker in self._workers)

    def _replace(self, worker: _Worker, code: int) -> None:
        """Begin a process in the place of one that has ended, unless that makes no sense."""
        self._workers.remove(worker)
        pid = worker.process.pid
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        if self._end is not None:
            return
        reason = worker.error or GPT2CLIError(f"a process of the server has ended with code {code}")
        if code and not worker.is_ready:
            self._error = reason
            self._stop()
        else:
            self._tell(f"process {pid} is replaced: {reason}")
            self._workers.append(self._begin())

    def _stop(self) -> None:
        """Let all end what they are doing, and take no more."""
        self._end = time.monotonic() + _KILL_SECONDS
        self._listener.close()
        for worker in self._workers:
            worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
