"""A decoding step in fixed shapes, which a GPU can record once and replay for every token.

A step is over ten small kernels per layer, and starting each of them from Python can take longer
than running it; a CUDA graph starts them all at once. A graph repeats the very same kernels on
the very same memory, so whatever changes from token to token has to be data on the device: it
comes in one buffer that is refilled for each step.

Sources: PyTorch's notes on CUDA semantics, "CUDA Graphs" (docs.pytorch.org/docs/stable/notes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2cli.errors import GPT2CLIError

BUCKET = 256  # tokens, of which a graph attends to a multiple: 4 graphs per size of a batch
WARM_UP = 3  # runs before a recording, in which libraries initialize

Compute = Callable[[], Tensor]
Function = Callable[[Tensor], Tensor]


class Repeated:
    """A function of integers, through `record` where one is given.

    `record` takes a computation and returns one that repeats it with the same memory. It is
    called once per shape of the integers, when first needed, and may compute several times.
    """

    def __init__(
        self,
        function: Function,
        device: torch.device,
        record: Callable[[Compute], Compute] | None = None,
    ) -> None:
        self._function, self._device, self._record = function, device, record
        self._recorded: dict[torch.Size, tuple[Tensor, Compute]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """The function of `inputs`, which are on the host; valid until the next call."""
        if self._record is None:
            return self._function(inputs.to(self._device))
        if inputs.shape not in self._recorded:
            buffer = inputs.to(self._device, copy=True)
            self._recorded[inputs.shape] = buffer, self._record(lambda: self._function(buffer))
        buffer, compute = self._recorded[inputs.shape]
        # A copy from pinned memory is asynchronous.
        fresh = inputs.pin_memory() if buffer.is_cuda else inputs
        buffer.copy_(fresh, non_blocking=True)
        return compute()


def compiled(function: Function) -> Function:
    """The function through torch.compile, which compiles at the first call.

    Raises `GPT2CLIError` then, if it lacks a compiler or fails.
    """

    def run(inputs: Tensor) -> Tensor:
        try:
            return faster(inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _cannot_compile(error) from error

    try:
        faster: Function = torch.compile(function)
    except RuntimeError as error:  # on a Python that it does not support
        raise _cannot_compile(error) from error
    return run


def _cannot_compile(error: Exception) -> GPT2CLIError:
    reason = _first_line(error)
    return GPT2CLIError(f"torch.compile failed, leave out compile: {reason}", "compile")


def _first_line(error: Exception) -> str:
    """The first line of an error, without the compiler's wrapper and advice."""
    cause = getattr(error, "inner_exception", error)
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


class CudaGraphs:
    """Records computations on one GPU as CUDA graphs that share their working memory.

    They may share it because each result is used before the next graph runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A stream of its own: PyTorch keeps cuBLAS's workspace with the stream, and frees it
        # with any graph that was recorded there (github.com/pytorch/pytorch/issues/193402).
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Run `compute` a few times, then record it. Raises `GPT2CLIError` if that fails."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device):
                self._warm_up(compute)
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    logits = compute()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # An error in a recording aborts it, and the abort is reported in its place.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            reason = _first_line(error)
            raise GPT2CLIError(f"the GPU cannot record a decoding step: {reason}") from error

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _warm_up(self, compute: Compute) -> None:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                compute()
        current.wait_stream(self._stream)
