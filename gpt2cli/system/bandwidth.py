"""Memory bandwidth: the limit of a decoder that reads all weights per token.

The best of several readings counts, as in McCalpin's STREAM benchmark
(www.cs.virginia.edu/stream/ref.html): other load can only make memory seem slower. Where that
load comes and goes, readings have to be taken between the measurements that they are compared
with, and not after them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpt2cli.system import machine

CPU_BUFFER = 512 << 20  # bytes: many times the caches of most CPUs
GPU_BUFFER = 4 << 30
READINGS = 2  # that count, at a time
_SLICE = 4 << 20  # bytes that a thread reads at a time

Read = Callable[[], object]
Clock = Callable[[], float]


class Meter:
    """Reads memory now and then, by so many threads of the CPU or by a GPU.

    `best` is the most bytes per second so far, 0 before the first reading, which makes a buffer.
    """

    def __init__(self, device: str, threads: int) -> None:
        self.best = 0.0
        self._device, self._threads = device, threads
        self._reader: tuple[Read, int] | None = None

    def read(self) -> None:
        """Read the buffer a few times."""
        if self._reader is None:
            self._reader = self._new_reader()
        self.best = max(self.best, best(*self._reader))

    def _new_reader(self) -> tuple[Read, int]:
        if self._device != "cpu":
            return torch_reader(self._device, GPU_BUFFER)
        size = max(CPU_BUFFER, 2 * (machine.cache_size() or 0))
        pool = ThreadPoolExecutor(self._threads)
        return cpu_reader(min(size, machine.memory()[1] // 4), self._threads, pool)


def best(
    read: Read, size: int, readings: int = READINGS, clock: Clock = time.perf_counter
) -> float:
    """The highest rate of several calls in bytes per second, after one warm-up."""
    read()
    rates = []
    for _ in range(readings):
        begun = clock()
        read()
        rates.append(size / (clock() - begun))
    return max(rates)


def cpu_reader(size: int, threads: int, pool: ThreadPoolExecutor) -> tuple[Read, int]:
    """A function by which n threads read a new buffer of about `size` bytes, and its true size.

    A maximum is NumPy's cheapest reading: one vector instruction, without the GIL.
    """
    # Written to, because fresh pages share one page of zeros, which would stay in the cache.
    parts = [np.ones(max(size // threads // 4, 1), dtype=np.int32) for _ in range(threads)]

    def read_part(part: np.ndarray) -> int:
        step = _SLICE // part.itemsize
        return max(int(part[i : i + step].max()) for i in range(0, len(part), step))

    return lambda: list(pool.map(read_part, parts)), sum(part.nbytes for part in parts)


def torch_reader(device: str, size: int) -> tuple[Read, int]:
    """The same for a PyTorch device, synchronously; at most a quarter of free memory."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    elif kind == "mps":
        size = min(size, machine.memory()[1] // 4)
    buffer = torch.ones(max(size // 4, 1), dtype=torch.float32, device=device)
    return lambda: buffer.sum().item(), buffer.nbytes  # item() waits until the sum is there
