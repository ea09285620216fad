"""The `Decoder` protocol on top of `model.GPT2`: any device that PyTorch runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2cli.decoders import graphs
from gpt2cli.decoders.graphs import CudaGraphs, Repeated
from gpt2cli.decoders.paged import PagedDecoder
from gpt2cli.decoders.pages import PAGE, Chunk, pages_for
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.kv_cache import CacheView, KVCache

# Not cuDNN's, which makes a plan for every new length: that takes longer than reading a prompt.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class TorchDecoder(PagedDecoder):
    """Decodes with PyTorch: chunks of one length side by side, above all those of one token.

    A CUDA GPU replays steps of one token per sequence as graphs; elsewhere they are the model's
    own, unless `compiled` asks for `torch.compile`. Every text is read under `edits`. `tokens`,
    `size` and `name` are those of `PagedDecoder`.
    """

    def __init__(
        self,
        model: GPT2,
        tokens: int | None = None,
        compiled: bool = False,
        *,
        edits: Edits | None = None,
        size: int | None = None,
        name: str = "the model",
    ) -> None:
        super().__init__(model.config, tokens, size, name)
        self.model, self._edits = model, edits
        weight = model.token_embedding.weight
        self.device = weight.device
        self._cache = KVCache(model.config, self.pages * PAGE, self.device, weight.dtype)
        # Compiling takes almost a minute per shape, so then all attend to a whole context.
        self._stride = self.context_length if compiled else graphs.BUCKET
        self._step: Repeated | None = None
        if weight.is_cuda or compiled:
            function = graphs.compiled(self._logits_of_one) if compiled else self._logits_of_one
            record = CudaGraphs(self.device) if weight.is_cuda else None
            self._step = Repeated(function, self.device, record)

    @sdpa_kernel(_ATTENTION)
    @torch.inference_mode()
    def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Any:
        """Raises `GPT2CLIError` if a step cannot be compiled or recorded here. → (N, V)"""
        groups: dict[int, list[int]] = {}  # which chunks have this length
        for i, chunk in enumerate(chunks):
            groups.setdefault(len(chunk.ids), []).append(i)
        if len(groups) == 1:
            return _export(self._logits(chunks, tables))
        parts = [torch.empty(0)] * len(chunks)
        for members in groups.values():
            group = [chunks[i] for i in members]
            logits = self._logits(group, [tables[i] for i in members])
            counts = [len(chunk.ids) if chunk.every else 1 for chunk in group]
            for i, part in zip(members, torch.split(logits, counts), strict=True):
                parts[i] = part
        return _export(torch.cat(parts))

    @torch.inference_mode()
    def _copy_page(self, source: int, target: int) -> None:
        there, here = (slice(page * PAGE, (page + 1) * PAGE) for page in (target, source))
        self._cache.kv[:, there] = self._cache.kv[:, here]

    def _logits(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Tensor:
        """Those that are wanted after chunks of one length. → (N, V), valid until the next call"""
        T = len(chunks[0].ids)
        longest = max(chunk.start for chunk in chunks) + T
        if T == 1 and self._step is not None:
            return self._step(self._bucket(chunks, tables, longest))[: len(chunks)]
        inputs = self._pack(chunks, tables, pages_for(longest)).to(self.device)
        x = self._hidden(inputs, T, longest)
        if any(chunk.every for chunk in chunks):
            wanted = zip(x, chunks, strict=True)
            return self.model.head(torch.cat([y if c.every else y[-1:] for y, c in wanted]))
        return self.model.head(x[:, -1])

    def _bucket(
        self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]], longest: int
    ) -> Tensor:
        """`_pack` chunks of one token in one of few shapes, as each of them is recorded."""
        attended = -(-longest // self._stride) * self._stride
        rows = 1 << (len(chunks) - 1).bit_length()
        return self._pack(chunks, tables, pages_for(min(attended, self.context_length)), rows)

    def _pack(
        self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]], pages: int, rows: int = 0
    ) -> Tensor:
        """All that a forward pass over chunks of T ids depends on, in at least `rows` rows.

        → (B, 3T + pages): ids, their positions, the slots to write them to, pages to attend to
        """

        def row(chunk: Chunk, table: Sequence[int]) -> Iterator[int]:
            positions = range(chunk.start, chunk.start + len(chunk.ids))
            slots = [table[p // PAGE] * PAGE + p % PAGE for p in positions]
            return chain(chunk.ids, positions, slots, table[:pages], [0] * (pages - len(table)))

        width = 3 * len(chunks[0].ids) + pages
        numbers = chain.from_iterable(map(row, chunks, tables))
        packed = np.fromiter(numbers, np.int64, len(chunks) * width).reshape(-1, width)
        padding = np.zeros((max(0, rows - len(chunks)), width), np.int64)
        padding[:, 2] = self._cache.scrap  # of one token at position 0
        return torch.from_numpy(np.concatenate([packed, padding]))

    def _hidden(self, inputs: Tensor, T: int, S: int) -> Tensor:
        """The model's, for what `_pack` makes of chunks of T ids and up to S tokens. → (B, T, C)"""
        widths = [T, T, T, inputs.shape[1] - 3 * T]
        ids, positions, new, pages = torch.split(inputs, widths, dim=1)
        slots = pages[..., None] * PAGE + torch.arange(PAGE, device=self.device)
        view = CacheView(self._cache, positions, new, slots.flatten(1)[:, :S])
        return self.model.hidden(ids, view, edits=self._edits)

    def _logits_of_one(self, inputs: Tensor) -> Tensor:
        """Those after one token per sequence, as packed. (B, 3 + pages) → (B, V)"""
        return self.model.head(self._hidden(inputs, 1, (inputs.shape[1] - 3) * PAGE)[:, -1])


def _export(logits: Tensor) -> Any:
    """Logits in fp32, as the array type that samples fastest on their device.

    Sampling sorts, which NumPy does many times faster than PyTorch on a CPU.
    """
    exported = logits.to(torch.float32, copy=True)  # a graph overwrites its result
    return exported if logits.is_cuda else exported.cpu().numpy()
