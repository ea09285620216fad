"""How fast a model reads and writes here, compared with what the machine's memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpt2cli.analysis.limits import (
    LoadResult,
    Result,
    Spread,
    judge,
    judge_load,
    loaded_steps,
    spread,
    steps_of,
)
from gpt2cli.analysis.load import Writer
from gpt2cli.analysis.timing import Plan, Timings, run
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.opening import is_native
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.system import machine
from gpt2cli.system.bandwidth import Meter
from gpt2cli.system.device import Placement
from gpt2cli.threads import thread_count


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured, and on what; `threads` is None on a GPU.

    `repeats` counts the rounds; `interrupted` says that more were planned. The bandwidth is the
    most that was seen, in `reading` the memory or in `decoding`. `cache_bytes` is the size of the
    last cache before the memory, None where nothing tells it.
    """

    device_name: str
    threads: int | None
    repeats: int
    interrupted: bool
    first_prefill_s: float
    time_to_first_token_s: Spread
    peak_memory_bytes: int | None
    bandwidth_bytes_per_second: float
    bandwidth_seen_in: Literal["reading", "decoding"]
    cache_bytes: int | None
    contexts: tuple[Result, ...]
    sequences: tuple[LoadResult, ...]


def measure(
    decoder: Decoder,
    config: ModelConfig,
    placement: Placement,
    plan: Plan,
    writer: Writer | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Measure a decoder, and in between the memory that it reads from.

    `writer` writes with that decoder, where the plan has sequences. The first token's time is
    that of the shortest context. `advance` is called after each of `plan.measurements`. Ctrl-C
    ends it after the rounds that are complete; before the first of them it is raised.
    """
    meter = Meter(placement.device, _threads_of(placement) or 1)
    peak: list[int | None] = []

    def pause() -> None:
        if not peak:  # all has been in use once, and the buffer that is read next has not
            peak.append(peak_memory(placement.device))
        meter.read()
        _refresh(decoder)

    timings = run(decoder, config.vocab_size, plan, advance, writer=writer, pause=pause)
    return _report(timings, config, placement, plan, meter.best, peak[0])


def _report(
    timings: Timings,
    config: ModelConfig,
    placement: Placement,
    plan: Plan,
    reading: float,
    peak: int | None,
) -> Report:
    """What the seconds mean; the memory was read at `reading` bytes/s at most.

    Steps that no cache holds may have read it faster: then they were what the memory can do.
    """
    cache, precision = cache_size(placement.device), placement.precision
    steps = [steps_of(each, config, precision, plan.samples) for each in timings.measurements]
    loaded = [
        loaded_steps(loads, count, plan.tokens, config, precision)
        for count, loads in zip(plan.sequences, timings.loads, strict=True)
    ]
    decoding = max((s.traffic for s in steps + loaded if not s.fits(cache)), default=0.0)
    speed = max(reading, decoding)
    return Report(
        device_name=device_name(placement.device),
        threads=_threads_of(placement),
        repeats=timings.repeats,
        interrupted=timings.repeats < plan.repeats,
        first_prefill_s=timings.first_prefill_seconds,
        time_to_first_token_s=spread(timings.measurements[0].prefill_seconds),
        peak_memory_bytes=peak,
        bandwidth_bytes_per_second=speed,
        bandwidth_seen_in="decoding" if decoding > reading else "reading",
        cache_bytes=cache,
        contexts=tuple(
            judge(measurement, config, precision, plan.samples, speed, cache)
            for measurement in timings.measurements
        ),
        sequences=tuple(
            judge_load(loads, each, plan, speed, cache)
            for loads, each in zip(timings.loads, loaded, strict=True)
        ),
    )


def _refresh(decoder: Decoder) -> None:
    """Bring the weights back to where they are while a model decodes: in a cache, if they fit."""
    sequence = decoder.open()
    decoder.read([Chunk(sequence, 0, [0])])
    decoder.close(sequence)


def peak_memory(device: str) -> int | None:
    """The most bytes held so far: of RAM by this process, or of a CUDA GPU by its tensors.

    None for Apple's GPUs, which do not report it.
    """
    if device == "cpu":
        return machine.peak_memory()
    if device == "mps":
        return None
    import torch

    return torch.cuda.max_memory_allocated(device)


def cache_size(device: str) -> int | None:
    """Bytes of the last cache before a device's memory; None for Apple's GPUs."""
    if device == "cpu":
        return machine.cache_size()
    if device == "mps":
        return None
    import torch

    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def device_name(device: str) -> str:
    """The maker's name of the CPU or GPU; Apple's are one chip."""
    if not device.startswith("cuda"):
        return machine.cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def _threads_of(placement: Placement) -> int | None:
    """The number of CPU threads that compute; None for a GPU."""
    if placement.device != "cpu":
        return None
    if is_native(placement):
        return thread_count()
    import torch

    return torch.get_num_threads()
