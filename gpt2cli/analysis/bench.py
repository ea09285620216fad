"""How fast a model reads and writes here, compared with what the machine's memory allows.

Every new token needs all weights and the KV cache once, so decoding cannot be faster than the
memory's bandwidth divided by those bytes (Pope et al. 2022, arXiv:2211.05102, section 2).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Imported here: NumPy's own late import of it loses a Ctrl-C that comes meanwhile.
from numpy.random import default_rng

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.opening import is_native
from gpt2cli.decoders.pages import PAGE, Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.sampling.rules import greedy
from gpt2cli.system import bandwidth, estimate, machine
from gpt2cli.system.bandwidth import Clock
from gpt2cli.system.device import Placement
from gpt2cli.threads import thread_count

TOKENS = 50
SEED = 0  # of the ids that are read: their values do not change the work


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `tokens` decoded after each of `contexts`, `repeats` times over."""

    contexts: tuple[int, ...]
    tokens: int
    repeats: int
    samples: int

    @property
    def measurements(self) -> int:
        """Prompts that are read and continued, with the round that does not count."""
        return len(self.contexts) * (self.repeats + 1)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds to read `context` tokens and choose the next, and to decode `tokens` more."""

    context: int
    tokens: int
    prefill_seconds: tuple[float, ...]
    decode_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """All measurements, and the seconds of the very first prefill, with cold weights."""

    first_prefill_seconds: float
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of repeated measurements."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one measurement. Speeds are tokens/s; decoding counts those of all samples.

    The limit is the decoding speed at which the memory could do no more. The share is None
    where a cache does the memory's work: a step's bytes fit it, or stay there in part.
    """

    context: int
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    bytes_per_step: int
    limit_tokens_per_second: float
    share_of_limit: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured, and on what; `threads` is None on a GPU.

    `cache_bytes` is the size of the last cache before the memory, None where nothing tells it.
    """

    device_name: str
    threads: int | None
    first_prefill_s: float
    time_to_first_token_s: Spread
    peak_memory_bytes: int | None
    bandwidth_bytes_per_second: float
    cache_bytes: int | None
    contexts: tuple[Result, ...]


def check_counts(contexts: Sequence[int], tokens: int, repeats: int, samples: int) -> None:
    """Raise `UsageError` for a count below 1, which is wrong for any model."""
    given = [("context", context) for context in contexts]
    for name, value in (*given, ("tokens", tokens), ("repeats", repeats), ("samples", samples)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")


def make_plan(
    context_length: int,
    contexts: Sequence[int],
    tokens: int | None = None,
    repeats: int = 5,
    samples: int = 1,
) -> Plan:
    """The plan, with defaults for what was not given. Raises `UsageError` for an impossible one.

    Without `contexts`: a short one, half a window, and seven eighths or what fits.
    """
    if tokens is None:
        tokens = min(TOKENS, max(context_length // 4, 1))
    check_counts(contexts, tokens, repeats, samples)
    room = context_length - tokens
    if room < 1:
        raise UsageError(
            f"{tokens} tokens leave no room to read any in a context of {context_length}; "
            "give fewer tokens"
        )
    usual = (min(32, room), min(context_length // 2, room), min(context_length * 7 // 8, room))
    for context in contexts:
        if context > room:
            raise UsageError(
                f"context {context} and {tokens} tokens to decode exceed the model's "
                f"{context_length}; give at most context {room}, or fewer tokens",
                "context",
                "context",
            )
    return Plan(tuple(sorted(set(contexts or usual))), tokens, repeats, samples)


def measure(
    decoder: Decoder,
    config: ModelConfig,
    placement: Placement,
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Measure a decoder and then the memory that it reads from.

    The first token's time is that of the shortest context. `advance` is called after each
    of `plan.measurements`.
    """
    timings = run(decoder, config.vocab_size, plan, advance)
    peak = peak_memory(placement.device)  # without the buffer that is read next
    threads = _threads_of(placement)
    speed = bandwidth.measure(placement.device, threads or 1)
    cache = cache_size(placement.device)
    return Report(
        device_name=device_name(placement.device),
        threads=threads,
        first_prefill_s=timings.first_prefill_seconds,
        time_to_first_token_s=spread(timings.measurements[0].prefill_seconds),
        peak_memory_bytes=peak,
        bandwidth_bytes_per_second=speed,
        cache_bytes=cache,
        contexts=tuple(
            judge(measurement, config, placement.precision, plan.samples, speed, cache)
            for measurement in timings.measurements
        ),
    )


def run(
    decoder: Decoder,
    vocab_size: int,
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Timings:
    """Measure all contexts in turn, round by round, so that a slow phase affects them all.

    The first round does not count: weights are paged in, libraries set themselves up, GPUs
    record their graphs.
    """
    random = default_rng(SEED)
    prompts = [random.integers(vocab_size, size=n).tolist() for n in plan.contexts]
    rounds = []
    for _ in range(plan.repeats + 1):
        pairs = []
        for prompt in prompts:
            pairs.append(_measure(decoder, prompt, plan, clock))
            advance()
        rounds.append(pairs)
    measurements = [
        Measurement(context, plan.tokens, *zip(*pairs, strict=True))
        for context, pairs in zip(plan.contexts, zip(*rounds[1:], strict=True), strict=True)
    ]
    return Timings(rounds[0][0][0], tuple(measurements))


def _measure(decoder: Decoder, prompt: list[int], plan: Plan, clock: Clock) -> tuple[float, float]:
    """Seconds to read and to decode, greedily, as `generation` does it."""
    sequences = [decoder.open()]
    begun = clock()
    # A list is there only when the device has finished.
    ids = greedy(decoder.read([Chunk(sequences[0], 0, prompt)])).tolist() * plan.samples
    first = clock()
    sequences += [decoder.fork(sequences[0]) for _ in range(plan.samples - 1)]
    for t in range(len(prompt), len(prompt) + plan.tokens):
        chunks = [Chunk(s, t, [token]) for s, token in zip(sequences, ids, strict=True)]
        ids = greedy(decoder.read(chunks)).tolist()
    last = clock()
    for sequence in sequences:
        decoder.close(sequence)
    return first - begun, last - first


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


def judge(
    measurement: Measurement,
    config: ModelConfig,
    precision: str,
    samples: int,
    speed: float,
    cache: int | None = None,
) -> Result:
    """Speeds of a measurement, and their share of what memory read at `speed` bytes/s allows.

    `precision` is a key of `system.precision.PRECISIONS`; `cache` counts the bytes that need not
    come from memory.
    """
    context, tokens = measurement.context, measurement.tokens
    shared = context // PAGE * PAGE if samples > 1 else 0  # in full pages of the prompt
    # Step i reads i keys more than the first; the middle one stands for all.
    own = context - shared + (tokens + 1) // 2
    cache_bytes = estimate.kv_cache_bytes(config, precision, shared + samples * own)
    bytes_per_step = estimate.step_weight_bytes(config, precision, samples) + cache_bytes
    decode = spread([samples * tokens / seconds for seconds in measurement.decode_seconds])
    limit = samples * speed / bytes_per_step
    share = decode.median / limit
    return Result(
        context=context,
        prefill_tokens_per_second=spread([context / s for s in measurement.prefill_seconds]),
        decode_tokens_per_second=decode,
        bytes_per_step=bytes_per_step,
        limit_tokens_per_second=limit,
        share_of_limit=None if bytes_per_step <= (cache or 0) or share > 1 else share,
    )


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
