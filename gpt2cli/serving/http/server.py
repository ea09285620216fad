"""A server in this process: from a socket that listens to the last answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from socket import socket
from threading import Thread, Timer
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from gpt2cli.errors import GPT2CLIError
from gpt2cli.serving.http.app import application
from gpt2cli.serving.http.engine import Engine
from gpt2cli.serving.http.protocol import Protocol
from gpt2cli.serving.http.service import Service
from gpt2cli.serving.http.settings import Options

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAIN_SECONDS = 30  # that requests have to end after the first signal
_FORCE_SECONDS = 1.0  # that an orderly end may take after the second one
_KEEP_ALIVE_SECONDS = 75  # longer than the pools of clients, who would else write to what closes


class Server(uvicorn.Server):
    """uvicorn with our signals, and a model that is opened when it listens.

    It says that it is not ready until then: `fetch` is called first, and `ready` when it is. `tell`
    takes lines for people, each of a request if the options want that. `failure` is why it has
    ended, if that was not asked for.
    """

    signals: Sequence[signal.Signals] = SIGNALS

    def __init__(
        self,
        model: LoadedModel,
        options: Options,
        *,
        fetch: Callable[[], None] = lambda: None,
        ready: Callable[[], None] = lambda: None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.failure: GPT2CLIError | None = None
        self._fetch, self._ready = fetch, ready
        self._note: Callable[[str], object] = (lambda _: None) if options.quiet else tell
        self.service = Service(
            model,
            max_sequences=options.max_sequences,
            queue=options.queue,
            processes=options.workers,
            broken=self._broken,
        )
        app = application(
            self.service,
            options.policy,
            origins=options.origins,
            log=self._note,
            log_json=options.log_json,
        )
        _log_errors(tell)
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve until a signal comes, and end the requests that are being answered then.

        A second signal ends all at once. Raises `failure` if the model cannot be opened, or fails.
        """
        super().run(sockets)
        if self.failure is not None:
            raise self.failure

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, and begin to open the model."""
        await super().startup(sockets)
        # No task of the loop, which would wait for a download before it ends.
        Thread(target=self._open, args=(asyncio.get_running_loop(),), daemon=True).start()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """End the requests, and then the engine, unless all is to end at once."""
        await super().shutdown(sockets)
        if self.service.engine is not None and not self.force_exit:
            self.service.engine.stop()

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._fetch()
            engine = self.service.open()
        except GPT2CLIError as error:
            self.failure, self.should_exit = error, True
        except Exception as error:
            self.failure = GPT2CLIError(f"cannot open the model: {type(error).__name__}: {error}")
            self.should_exit = True
        else:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._begin, engine)

    def _begin(self, engine: Engine) -> None:
        engine.start()
        self.service.engine = engine
        self._ready()

    def _broken(self) -> None:
        """The engine has failed: let what is answered be told so, and end."""
        engine = self.service.engine
        reason = engine and f"{type(engine.error).__name__}: {engine.error}"
        self.failure, self.should_exit = GPT2CLIError(f"the engine has failed: {reason}"), True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self.should_exit:
            self.force_exit = True
            _end_soon()
            return
        self.should_exit = True
        if self.server_state.tasks:
            self._note(f"ending in {DRAIN_SECONDS} s at most; once more ends at once")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals for an end that was asked for, which is no failure."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in self.signals}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _end_soon() -> None:
    """End the process even if a thread still prepares a request, for which asyncio would wait."""
    timer = Timer(_FORCE_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._tell(f"internal error: {type(error).__name__}: {error}")


def _log_errors(tell: Callable[[str], object]) -> None:
    """Have uvicorn's errors told in a line, in place of a traceback."""
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [_Handler(tell)], False
