"""One decoder and one batch for the requests of many threads.

There is no thread of its own: whoever waits for news, while nobody else does, computes the next
step for all. So an idle model costs nothing, and texts of several threads are written side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

from gpt2cli.decoders.pages import PAGE
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import GPT2CLIError
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.scheduler import Scheduler
from gpt2cli.generation.sequence import Ids

Key = int
News = tuple[Key, Event | GPT2CLIError]
_T = TypeVar("_T")


class Inbox:
    """The news of some requests of one thread, by the key that each was given."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.news: deque[News] = deque()
        self.requests: dict[Key, int] = {}

    def add(self, key: Key, prompt: Ids, config: GenerationConfig) -> None:
        """Queue a request. What is wrong with it comes as news."""
        self._batcher.enqueue(lambda scheduler: self._begin(scheduler, key, prompt, config))

    def wait(self) -> News:
        """The next news; computes steps until there is some."""
        return self._batcher.work_until(lambda: self.news.popleft() if self.news else None)

    def done(self, key: Key) -> None:
        """Expect no more news of a request."""
        if (request := self.requests.pop(key, None)) is not None:
            self._batcher.forget(request)

    def close(self) -> None:
        """Forget all requests that are not done."""
        self._batcher.enqueue(self._cancel)

    def _begin(self, scheduler: Scheduler, key: Key, prompt: Ids, config: GenerationConfig) -> None:
        try:
            request = scheduler.add(prompt, config)
        except GPT2CLIError as error:
            self.news.append((key, error))
            return
        self.requests[key] = request
        self._batcher.deliver(request, lambda what: self.news.append((key, what)))

    def _cancel(self, scheduler: Scheduler) -> None:
        for request in list(self.requests.values()):
            scheduler.cancel(request)
            self._batcher.forget(request)


class Batcher:
    """A scheduler that several threads may use."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._orders: deque[Callable[[Scheduler], None]] = deque()
        self._receivers: dict[int, Callable[[Event | GPT2CLIError], None]] = {}
        self._state = Condition()
        self._computing = False

    def limits(self) -> str:
        """What bounds the batch, in words."""
        return (
            f"at most {self.scheduler.max_sequences} texts at once, "
            f"{self.scheduler.batch_tokens} tokens per step, "
            f"a KV cache of {self.scheduler.decoder.pages * PAGE:,} tokens"
        )

    def stream(self, prompt: Ids, config: GenerationConfig) -> Iterator[Event]:
        """Continue a prompt: an event per token. Raises what is wrong with it."""
        inbox = Inbox(self)
        inbox.add(0, prompt, config)
        left = config.samples
        try:
            while left:
                _, event = inbox.wait()
                if isinstance(event, GPT2CLIError):
                    raise event
                left -= event.finish_reason is not None
                yield event
        finally:
            inbox.close()

    @contextmanager
    def alone(self) -> Iterator[Decoder]:
        """The decoder for one thread, while all others wait."""
        self._begin_computing()
        try:
            self._follow_orders()
            yield self.scheduler.decoder
        finally:
            self._end_computing()

    def enqueue(self, order: Callable[[Scheduler], None]) -> None:
        """Have something done between two steps."""
        self._orders.append(order)

    def deliver(self, request: int, receive: Callable[[Event | GPT2CLIError], None]) -> None:
        """Whom to give a request's news."""
        self._receivers[request] = receive

    def forget(self, request: int) -> None:
        """Give a request's news to nobody."""
        self._receivers.pop(request, None)

    def work_until(self, take: Callable[[], _T | None]) -> _T:
        """Compute steps, or wait while another thread does, until `take` returns something."""
        while True:
            with self._state:
                while (found := take()) is None and self._computing:
                    self._state.wait()
                if found is not None:
                    return found
                self._computing = True
            try:
                self._step()
            finally:
                self._end_computing()

    def _follow_orders(self) -> None:
        while self._orders:
            self._orders.popleft()(self.scheduler)

    def _step(self) -> None:
        self._follow_orders()
        try:
            updates = self.scheduler.step()
        except GPT2CLIError as error:  # of the model, not of one request: all end
            for request, receive in list(self._receivers.items()):
                self.scheduler.cancel(request)
                receive(error)
            return
        for request, what in updates:
            self._receivers[request](what)

    def _begin_computing(self) -> None:
        with self._state:
            while self._computing:
                self._state.wait()
            self._computing = True

    def _end_computing(self) -> None:
        with self._state:
            self._computing = False
            self._state.notify_all()
