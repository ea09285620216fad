"""Begins several processes on this machine that train together, and ends when they have.

They find each other as those that torchrun begins. What one of them raises, this one raises; when
one dies, all end.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pickle import PicklingError
from threading import Thread
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import GPT2CLIError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_SECONDS = 5.0  # for the others to notice that one is gone


def launch(work: Callable[..., None], count: int, *arguments: object) -> None:
    """Call a function of a module in `count` new processes, and wait for all.

    SIGINT and SIGTERM are passed on once, as SIGTERM; the second time all are killed. Raises what
    one of them raised, `SystemExit` with an exit code of theirs or after a signal, and
    `GPT2CLIError` if one was killed.
    """
    with _Workers() as workers:
        port = _free_port()
        for rank in range(count):
            workers.begin(work, arguments, rank, count, port)
        workers.watch()
    workers.settle()


class LostProcessError(GPT2CLIError):
    """Another process of a group has ended before its time."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    error: Exception | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, and not because all were asked to stop."""
        code = self.process.exitcode
        return code is not None and code != 0 and code <= 128

    def hear(self) -> None:
        """Take the error that it has sent, if any."""
        try:
            while self.pipe.poll():
                self.error, trace = self.pipe.recv()
                self.error.__cause__ = RuntimeError(f"in another process:\n{trace}")
        except (EOFError, OSError):
            return


class _Workers:
    def __init__(self) -> None:
        self._all: list[_Worker] = []
        self._signals: list[int] = []
        self._failed: list[_Worker] = []  # before any was made to end

    def __enter__(self) -> _Workers:
        self._before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(
        self, work: Callable[..., None], arguments: object, rank: int, count: int, port: int
    ) -> None:
        """Begin one process."""
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        arguments = work, arguments, environment, theirs
        process = context.Process(target=_work, args=arguments, daemon=True)
        # A terminal sends Ctrl-C to all processes, and only this one is to act on it.
        with _ignoring_interrupts():
            process.start()
        theirs.close()
        self._all.append(_Worker(process, ours))

    def watch(self) -> None:
        """Wait until all have ended; when one fails, the others have some seconds to do so."""
        end = math.inf
        while running := [w.process.sentinel for w in self._all if w.process.exitcode is None]:
            wait(running, timeout=0.5)
            for worker in self._all:
                worker.hear()
            if end == math.inf:
                self._failed = [worker for worker in self._all if worker.has_failed]
                end = time.monotonic() + _LAST_SECONDS if self._failed else math.inf
            elif time.monotonic() > end:
                self._kill()
        for worker in self._all:
            worker.hear()

    def settle(self) -> None:
        """Raise what is to be told of the end."""
        codes = [worker.process.exitcode or 0 for worker in self._all]
        # One knows why it has ended; others may only know that it has.
        errors = [worker.error for worker in self._all if worker.error is not None]
        errors.sort(key=lambda error: isinstance(error, LostProcessError))
        if errors and not isinstance(errors[0], LostProcessError):
            raise errors[0]
        if self._signals and any(codes):
            raise SystemExit(128 + self._signals[0])
        for rank, worker in enumerate(self._all):
            if worker in self._failed and codes[rank] < 0:
                raise GPT2CLIError(
                    f"process {rank} of {len(codes)} was killed by {_name(-codes[rank])}, and the "
                    "others have ended; resume goes on from what was saved last",
                    "resume",
                )
        if errors:
            raise errors[0]
        if any(codes):
            raise SystemExit(max(codes))

    def _pass_on(self, number: int, _: object) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            self._kill()
            return
        for worker in self._all:
            worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._all:
            worker.process.kill()
            worker.process.join()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    environment: dict[str, object],
    pipe: Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        work(*arguments)
    except Exception as error:
        trace = traceback.format_exc()
        try:
            pipe.send((error, trace))
        except (PicklingError, TypeError, AttributeError):  # all that pickle raises for it
            pipe.send((RuntimeError(f"{type(error).__name__}: {error}"), trace))
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """End also when the process that began this one was killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
