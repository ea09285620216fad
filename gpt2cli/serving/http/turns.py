"""Who computes what a page shows: one at a time, in the order in which they came.

Each has a thread while it computes, so that the event loop and the texts of all others go on. A
client that goes gives up its turn, and ends its computation at the next step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from gpt2cli.progress import Advance
from gpt2cli.serving.http import guard
from gpt2cli.serving.http.engine import Busy

MOST_WAITING = 64  # more than a page asks at once
_T = TypeVar("_T")


class Turns:
    """The order of computations; its methods are for one event loop."""

    def __init__(self) -> None:
        self._turn, self._long = asyncio.Lock(), asyncio.Lock()
        # Of those in between whose steps others come: one, so that a thread is always free.
        self._threads = ThreadPoolExecutor(2, "insight")
        self._waiting = 0

    async def take(self, work: Callable[[Advance], _T], receive: Receive) -> _T:
        """What `work` finds; it calls its argument from time to time.

        Raises `Busy` if too many wait, and `Gone` if the client does not.
        """
        stopped = threading.Event()

        def advance(_: int) -> None:
            if stopped.is_set():
                raise guard.Gone

        found = asyncio.create_task(self._compute(lambda: work(advance)))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait((found, gone), return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise guard.Gone
            return found.result()
        finally:
            stopped.set()
            gone.cancel()
            found.cancel()

    async def take_long(self, work: Callable[[Advance], _T], advance: Advance) -> _T:
        """The same of what takes long: others come in between its steps.

        `advance` is called in the thread after each, and may raise to end it.
        """
        loop = asyncio.get_running_loop()

        def step(count: int) -> None:
            advance(count)
            if self._waiting:
                asyncio.run_coroutine_threadsafe(self._let_others(), loop).result()
                advance(0)

        async with self._long:
            return await self._compute(lambda: work(step))

    async def _let_others(self) -> None:
        self._turn.release()
        await self._turn.acquire()

    async def _compute(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} computations wait already", 1.0)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        running = asyncio.wrap_future(self._threads.submit(work))
        running.add_done_callback(self._end)  # not before, even if its client has gone
        return await asyncio.shield(running)

    def _end(self, ended: Future[Any] | asyncio.Future[Any]) -> None:
        self._turn.release()
        if not ended.cancelled():
            ended.exception()  # which nobody may be there to take


async def until_gone(receive: Receive) -> None:
    """Wait until a client has gone whose request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
