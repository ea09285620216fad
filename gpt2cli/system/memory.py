"""Whether a run fits the memory, checked before anything is read."""

from __future__ import annotations

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.system import estimate, machine
from gpt2cli.system.device import Placement
from gpt2cli.system.precision import QUANTIZED

PAGE = 32  # tokens: `decoders.pages.PAGE`, which is above this module


def check_rows(config: ModelConfig, placement: Placement, samples: int, tokens: int) -> None:
    """Raise `UsageError` if `samples` texts of up to `tokens` tokens cannot fit.

    One sample is always allowed: the system may yet free memory.
    """
    needed = _needed(config, placement, samples, tokens)
    needed += estimate.sampling_bytes(config, samples)
    if samples > 1 and needed > (free := available(placement.device)):
        raise _too_many(f"{samples} samples", "samples", tokens, needed, free)


def check_room(config: ModelConfig, placement: Placement, tokens: int) -> None:
    """Raise `UsageError` if a KV cache of `tokens` tokens, larger than one context, cannot fit."""
    if tokens <= config.context_length:
        return
    needed = _needed(config, placement, 1, config.context_length)
    needed += estimate.kv_cache_bytes(
        config, placement.cache_precision, tokens - config.context_length
    )
    if needed > (free := available(placement.device)):
        raise UsageError(
            f"{tokens:,} tokens at once need {needed / 1e9:,.1f} GB of memory and "
            f"{free / 1e9:,.1f} GB are free; ask for fewer"
        )


SEQUENCES = 64  # that are written at once, by default


def batch_room(
    config: ModelConfig, placement: Placement, sequences: int | None = None, processes: int = 1
) -> tuple[int, int]:
    """How many texts to write at once, and the tokens of a KV cache for them.

    There is room for every text to fill its context, if half of the free memory can hold that,
    or the part of the half that each of some `processes` may take.
    """
    sequences = SEQUENCES if sequences is None else sequences
    token = estimate.kv_cache_bytes(config, placement.cache_precision, 1)
    affordable = available(placement.device) // 2 // processes // token // PAGE * PAGE
    context = _cells(config.context_length)
    return sequences, max(context, min(sequences * context, affordable))


def check_beams(config: ModelConfig, placement: Placement, beams: int, tokens: int) -> None:
    """Raise `UsageError` if a search with `beams` beams of up to `tokens` tokens cannot fit."""
    # A beam that parts from another copies a page.
    needed = _needed(config, placement, beams, tokens + PAGE)
    needed += estimate.search_bytes(config, beams)
    if needed > (free := available(placement.device)):
        raise _too_many(f"{beams} beams", "beams", tokens, needed, free)


def check_random(
    config: ModelConfig, placement: Placement, samples: int, tokens: int, name: str
) -> None:
    """Raise `UsageError` if random weights, which are not mapped from a file, cannot fit."""
    needed = _needed(config, placement, samples, tokens)
    needed += estimate.sampling_bytes(config, samples)
    if placement.precision in QUANTIZED:  # rows of the token embedding are read in fp32
        needed += 4 * estimate.parameters(config)["token embedding"]
    if needed > (free := available(placement.device)):
        raise UsageError(
            f"{name} with {samples} sample{'s' if samples > 1 else ''} of up to {tokens} tokens "
            f"needs {needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free; choose a "
            "smaller model"
        )


def check_conversion(config: ModelConfig) -> None:
    """Raise `UsageError` if weights cannot be converted, which takes one tensor at a time."""
    needed = 4 * 4 * config.emb_dim * max(config.vocab_size, 4 * config.emb_dim)
    if needed > (free := available("cpu")):
        raise UsageError(
            f"converting the weights needs {needed / 1e9:,.1f} GB of memory and "
            f"{free / 1e9:,.1f} GB are free"
        )


def available(device: str) -> int:
    """Bytes that are free on a device."""
    on_gpu = device.startswith("cuda")
    return machine.detect().memory_available if on_gpu else machine.memory()[1]


def _needed(config: ModelConfig, placement: Placement, rows: int, tokens: int) -> int:
    return estimate.inference_bytes(
        config, placement.precision, _cells(tokens), rows, cached=placement.cache_precision
    )


def _cells(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE


def _too_many(rows: str, kind: str, tokens: int, needed: int, free: int) -> UsageError:
    return UsageError(
        f"{rows} of up to {tokens} tokens need {needed / 1e9:,.1f} GB of memory and "
        f"{free / 1e9:,.1f} GB are free; ask for fewer {kind} or tokens"
    )
