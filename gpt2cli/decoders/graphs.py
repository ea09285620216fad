"""One decoding step in fixed shapes, which a GPU can record once and replay for every token.

A step is over ten small kernels per layer, and starting each of them from Python can take longer
than running it; a CUDA graph starts them all at once. A graph repeats the very same kernels on
the very same memory, so whatever changes from token to token has to be data on the device: the
ids and their position come in a buffer that is refilled for each token.

Sources: PyTorch's notes on CUDA semantics, "CUDA Graphs" (docs.pytorch.org/docs/stable/notes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.errors import GPT2CLIError
from gpt2cli.model.gpt2 import GPT2, CausalSelfAttention, TransformerBlock
from gpt2cli.model.kv_cache import KVCache

BUCKET = 256  # a graph attends to a multiple of this many slots: at most 4 graphs for GPT-2
WARM_UP = 3  # runs before a recording, in which libraries initialize

Compute = Callable[[], Tensor]
Step = Callable[[GPT2, KVCache, Tensor, int], Tensor]


def static_step(model: GPT2, cache: KVCache, inputs: Tensor, attended: int) -> Tensor:
    """What `model(ids, cache)` computes for one token per row, attending to `attended` slots.

    `inputs` holds B ids and then their position, which is below `attended`. A step may be
    repeated: the cache is written at that position, and `cache.length` is neither read nor changed.
    (B + 1,) → (B, V)
    """
    ids, position = inputs[:-1], inputs[-1:]
    x = model.token_embedding(ids) + model.position_embedding(position)  # (B, C)
    future = torch.arange(attended, device=x.device) > position
    mask = torch.zeros(1, attended, device=x.device, dtype=x.dtype).masked_fill(future, -torch.inf)
    for layer, module in enumerate(model.blocks):
        block = cast(TransformerBlock, module)
        keys, values = cache.keys[layer], cache.values[layer]  # (B, H, S, D)
        x = x + _attend(block.attention, block.norm1(x), keys, values, position, mask)
        x = x + block.feed_forward(block.norm2(x))
    return model.head(model.final_norm(x))


def _attend(
    attention: CausalSelfAttention,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    mask: Tensor,
) -> Tensor:
    """Attention over the first slots of the cache, as many as `mask` has. (B, C) → (B, C)"""
    B, C = x.shape
    q, k, v = (
        part.view(B, -1, 1, attention.head_dim) for part in attention.qkv(x).split(C, dim=-1)
    )  # (B, H, 1, D)
    keys.index_copy_(2, position, k)
    values.index_copy_(2, position, v)
    attended = mask.shape[1]
    y = F.scaled_dot_product_attention(
        q, keys[:, :, :attended], values[:, :, :attended], attn_mask=mask
    )
    return attention.out(y.reshape(B, C))  # type: ignore[no-any-return]


class GraphableStep:
    """Decodes token by token over a KV cache, through `record` where one is given.

    `record` takes a computation and returns one that repeats it with the same memory. It is
    called once per number of attended slots, when first needed.
    """

    def __init__(
        self,
        model: GPT2,
        cache: KVCache,
        record: Callable[[Compute], Compute] | None = None,
        compiled: bool = False,
    ) -> None:
        self._model, self._cache, self._record = model, cache, record
        batch_size, capacity = cache.keys.shape[1], cache.keys.shape[3]
        self._capacity = capacity
        self._inputs = torch.zeros(batch_size + 1, dtype=torch.long, device=cache.keys.device)
        self._step: Step = _compile(static_step) if compiled else static_step
        # Compiling takes almost a minute per shape, so then there is only one.
        self._stride = capacity if compiled else BUCKET
        self._steps: dict[int, Compute] = {}

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Read one more token per row; the logits stay valid until the next call. (B,) → (B, V)

        Raises `ValueError` when the cache is full.
        """
        position = self._cache.length
        if position >= self._capacity:
            raise ValueError(f"{position + 1} tokens do not fit a KV cache of {self._capacity}")
        # A copy from pinned memory is asynchronous.
        fresh = torch.tensor([*ids, position], pin_memory=self._inputs.is_cuda)
        self._inputs.copy_(fresh, non_blocking=True)
        attended = min((position // self._stride + 1) * self._stride, self._capacity)
        if attended not in self._steps:
            self._steps[attended] = self._prepare(attended)
        logits = self._steps[attended]()
        self._cache.length = position + 1
        return logits

    def _prepare(self, attended: int) -> Compute:
        def compute() -> Tensor:
            return self._step(self._model, self._cache, self._inputs, attended)

        return self._record(compute) if self._record else compute


def _compile(step: Step) -> Step:
    """The step through torch.compile, which compiles at the first call.

    Raises `GPT2CLIError` then, if it lacks a compiler or fails.
    """

    def run(model: GPT2, cache: KVCache, inputs: Tensor, attended: int) -> Tensor:
        try:
            return faster(model, cache, inputs, attended)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise GPT2CLIError(
                f"torch.compile failed, leave out compile: {_first_line(error)}", "compile"
            ) from error

    try:
        faster: Step = torch.compile(step)
    except RuntimeError as error:  # on a Python that it does not support
        raise GPT2CLIError(
            f"torch.compile failed, leave out compile: {_first_line(error)}", "compile"
        ) from error
    return run


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
