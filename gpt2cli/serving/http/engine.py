"""The thread that writes the texts of all requests, and how an event loop speaks with it.

Requests go in by a queue, and what has become of them comes back once per step, all texts together:
an event loop that is woken for each token would take the processor from those who compute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

from gpt2cli.decoders.pages import PAGE
from gpt2cli.errors import GPT2CLIError
from gpt2cli.generation.request import Event
from gpt2cli.generation.scheduler import Scheduler, Update
from gpt2cli.generation.sequence import Sequence as Text

News = tuple[int, Event | GPT2CLIError]
"""Which prompt of a request, and what has become of it."""

# Events that a client may leave unread before it counts as gone: 20 texts of 1,000 tokens, which
# are 70 MB where each token has 20 log-probabilities.
_UNREAD = 20_000
PROMPT_TOKENS = (64, 256)  # in a step that no text waits for: at least, and at most
_STEP_SECONDS = 0.08


class Busy(GPT2CLIError):
    """There is no room in the queue; there will be in about `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Broken(GPT2CLIError):
    """The engine has failed, and writes no more texts."""


class Job:
    """The texts of one request, for the event loop: their news, until they are closed."""

    def __init__(self, engine: Engine, texts: int) -> None:
        self.texts, self.begun = texts, time.monotonic()
        self.is_closed = False
        self._engine = engine
        self._news: list[News] = []
        self._wake = asyncio.Event()

    async def news(self) -> list[News]:
        """What is new, as soon as there is something; nothing once it is closed."""
        await self._wake.wait()
        self._wake.clear()
        news, self._news = self._news, []
        return [] if self.is_closed else news

    def tell(self, news: News) -> None:
        """Add news, to be read after `wake`."""
        self._news.append(news)

    def wake(self) -> None:
        """Let the reader go on; one that has stopped reading is given up."""
        self._wake.set()
        if len(self._news) > _UNREAD:
            self.close()

    def close(self) -> None:
        """Give the places of its texts to others, at once if they are still being written."""
        if not self.is_closed:
            self.is_closed = True
            self._wake.set()
            self._engine.forget(self)


class Engine:
    """A scheduler in a thread of its own, with at most `queue` texts that wait for a place.

    Its methods are for the event loop that has called `start`.
    """

    def __init__(self, scheduler: Scheduler, queue: int, broken: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.open = 0  # texts that have not ended
        self.error: BaseException | None = None  # that has ended it
        self._queue, self._broken = queue, broken
        self._seconds = 1.0  # that a text takes, the latest counting most
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._jobs: set[Job] = set()
        self._receivers: dict[int, tuple[Job, int]] = {}  # of the thread, by the request's number
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to write what is submitted from the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step."""
        self._orders.put(None)
        self._thread.join()

    def submit(self, prompts: Sequence[list[Text]]) -> Job:
        """Write the samples of some prompts. Raises `Busy`, and `Broken` after a failure."""
        count = sum(map(len, prompts))
        self.check_room(count)
        self.open += count
        job = Job(self, count)
        self._jobs.add(job)
        self._orders.put(lambda: self._begin(job, prompts))
        return job

    def check_room(self, count: int = 1) -> None:
        """Raise what `submit` would for some more texts; a request that is alone always fits."""
        if self.error is not None:
            raise Broken("the engine has failed; restart the server")
        room = self.scheduler.max_sequences + self._queue
        if self.open and self.open + count > room:
            each = self._seconds / self.scheduler.max_sequences
            wait = min(max((self.open + count - room) * each, 1.0), 60.0)
            raise Busy(f"{self.open} texts are written or wait already, and {room} may", wait)

    def forget(self, job: Job) -> None:
        """Write no more of a job's texts."""
        if job in self._jobs:
            self._jobs.remove(job)
            self.open -= job.texts
            self._seconds += 0.1 * (time.monotonic() - job.begun - self._seconds)
            self._orders.put(lambda: self._cancel(job))

    def _run(self) -> None:
        try:
            while self._follow_orders():
                self._hand_over(self._step())
        except BaseException as error:  # whatever it is, nothing is written any more
            self._tell_loop(partial(self._fail, error))

    def _follow_orders(self) -> bool:
        """Do what the loop asked for; wait if there is nothing to write. → whether to go on"""
        while True:
            try:
                order = self._orders.get(block=not self.scheduler.busy)
            except Empty:
                return True
            if order is None:
                return False
            order()

    def _step(self) -> Sequence[Update]:
        begun = time.monotonic()
        try:
            updates = self.scheduler.step()
            self._pace(time.monotonic() - begun)
            return updates
        except GPT2CLIError as error:  # of the model, not of one request: all end
            requests = list(self._receivers)
            for request in requests:
                self.scheduler.cancel(request)
            return [(request, error) for request in requests]

    def _pace(self, seconds: float) -> None:
        """Read long prompts in steps as long as a client that goes may wait for its place."""
        if (read := self.scheduler.tokens_read) >= PROMPT_TOKENS[0]:
            tokens = int(read * _STEP_SECONDS / seconds) // PAGE * PAGE
            self.scheduler.prompt_tokens = min(max(tokens, PROMPT_TOKENS[0]), PROMPT_TOKENS[1])

    def _hand_over(self, updates: Sequence[Update]) -> None:
        news = [(*self._receivers[request], what) for request, what in updates]
        if news:
            self._tell_loop(lambda: self._deliver(news))

    def _begin(self, job: Job, prompts: Sequence[list[Text]]) -> None:
        if not job.is_closed:
            for i, samples in enumerate(prompts):
                self._receivers[self.scheduler.queue(samples)] = job, i

    def _cancel(self, job: Job) -> None:
        for request in [r for r, (owner, _) in self._receivers.items() if owner is job]:
            self.scheduler.cancel(request)
            del self._receivers[request]

    def _tell_loop(self, act: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(act)

    def _deliver(self, news: list[tuple[Job, int, Event | GPT2CLIError]]) -> None:
        for job, prompt, what in news:
            job.tell((prompt, what))
        for job in {job for job, _, _ in news}:
            job.wake()

    def _fail(self, error: BaseException) -> None:
        self.error = error
        for job in list(self._jobs):
            job.tell((0, Broken("the engine has failed")))
            job.wake()
        self._broken()
