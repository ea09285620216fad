"""One of several processes that serve an address; `workers` begins and watches them.

All accept from one socket. The kernel lets whoever wakes up first take all connections that wait
there, so each takes one at a time, and the later, the more it has.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from socket import socket
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING

from gpt2cli.errors import GPT2CLIError
from gpt2cli.serving.http.engine import Engine
from gpt2cli.serving.http.protocol import Protocol
from gpt2cli.serving.http.server import Server

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.http.settings import Options

_PAUSE = 0.0005  # seconds before a connection is taken, for each that is open
_LONGEST_PAUSE = 0.01


def work(
    model: LoadedModel,
    listener: socket,
    options: Options,
    tell: Callable[[str], object],
    pipe: Connection,
) -> None:
    """Serve until told to end, or the process that has begun this one dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = Worker(model, options, ready=lambda: pipe.send(None), tell=tell)
    Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    try:
        server.run([listener])
    except GPT2CLIError as error:
        pipe.send(error)
        raise SystemExit(1) from None


def _end_with_parent(server: Server) -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    server.should_exit = True


class Worker(Server):
    """A server that shares its socket with others, and ends when it is told once or many times."""

    signals = (signal.SIGTERM,)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to open the model."""
        [self._listener] = sockets or []
        self._listener.setblocking(False)
        self._tasks: set[asyncio.Task[object]] = set()
        await super().startup([])

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Accept nothing more, and let what is open end."""
        asyncio.get_running_loop().remove_reader(self._listener)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Each 0.1 s let the metrics see the engine, which other processes may show."""
        if self.service.engine is not None:
            self.service.metrics.observe(self.service.engine)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a supervisor may signal every process, and ours passes the signal on besides."""
        self.should_exit = True

    def _begin(self, engine: Engine) -> None:
        super()._begin(engine)
        self._listen()  # not before: another process may be ready

    def _listen(self) -> None:
        if not self.should_exit:
            asyncio.get_running_loop().add_reader(self._listener, self._wait)

    def _wait(self) -> None:
        """Give those who have less to do the time to take what has come."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        pause = min(_PAUSE * len(self.server_state.connections), _LONGEST_PAUSE)
        loop.call_later(pause, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # another process was quicker, or no file can be opened
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._listen()

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)
