"""Whether a run fits the memory, how much of it to use, and what makes it fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.system import estimate
from gpt2cli.system.memory import available
from gpt2cli.training.distributed import ALONE, Group
from gpt2cli.training.state import Plan

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_GRADIENT_BYTES = 4  # of a parameter
_ROW_BYTES = 16  # of a token in the batch of a step, with its mask and segment
_CPU_TOKENS = 8192  # at once: more make a CPU no faster
# Of activations, what lies unused between arrays of other sizes: measured with glibc. Pages for
# each array lose nothing, but cost 25 % of the speed: `save_memory`.
_LOST = {"fp32": 0.3, "bf16": 0.6}
_SHARE = 0.7  # of the free memory, which a micro-batch that is chosen may take


def trained_parameters(config: ModelConfig, lora: LoraConfig | None) -> int:
    """How many parameters a run trains."""
    if lora is None:
        return estimate.total_parameters(config)
    C = config.emb_dim
    widths = {
        "attention.qkv": C + 3 * C,
        "attention.out": C + C,
        "feed_forward.up": C + 4 * C,
        "feed_forward.down": 4 * C + C,
    }
    return config.n_layers * lora.rank * sum(widths[name] for name in lora.matrices)


def needed(plan: Plan, config: ModelConfig, device: str, group: Group = ALONE) -> int:
    """Bytes of memory that one process of a run takes on its device, without what libraries take.

    A CPU's memory is shared by all that are on this machine.
    """
    settings, lora = plan.training, plan.lora is not None
    checkpointing = settings.activation_checkpointing
    size, precision = settings.micro_batch, plan.precision
    trained = trained_parameters(config, plan.lora)
    whole = estimate.training_bytes(
        config,
        size,
        precision,
        trained=trained,
        checkpointing=checkpointing,
        shards=group.world if group.shard else 1,
    )
    if group.world > 1 and not group.shard:
        whole += _GRADIENT_BYTES * trained  # which stay where they are sent from
    activations = estimate.activation_bytes(
        config, size, precision, lora=lora, checkpointing=checkpointing
    )
    is_lost = device == "cpu" and not (checkpointing or group.shard)
    lost = _LOST.get(precision, 0) if is_lost else 0
    rows = -(-settings.batch_size // group.world)
    return whole + int(lost * activations) + _ROW_BYTES * rows * config.context_length


def free_memory(device: str, group: Group = ALONE) -> int:
    """Bytes that are free for one process: of a CPU's its share."""
    return available(device) // (group.local if device == "cpu" else 1)


def fitted(plan: Plan, config: ModelConfig, device: str, group: Group = ALONE) -> Plan:
    """The plan with a micro-batch that fits the memory, if it does not say one.

    Raises `UsageError`, naming what would make it fit, where it does not.
    """
    batch_size, free = plan.training.batch_size, free_memory(device, group)
    if group.shard and plan.training.optimizer == "muon":
        raise UsageError("muon needs whole matrices; use adamw with shard", "optimizer", "shard")
    if group.shard and batch_size % group.world:
        raise UsageError(
            f"batch_size {batch_size} must be a multiple of the {group.world} processes of a "
            "sharded model",
            "batch_size",
        )
    room = partial(needed, config=config, device=device, group=group)
    if plan.training.micro_batch_size is None:
        sizes = [-(-batch_size // group.world)]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        most = _CPU_TOKENS if device == "cpu" else 1 << 60
        small = [size for size in sizes if size * config.context_length <= most] or [1]
        fits = [size for size in small if room(_at(plan, size)) <= _SHARE * free]
        plan = _at(plan, fits[0] if fits else 1)
    if 0.9 * room(plan) > free:
        raise _too_large(plan, config, room, free)
    return plan


def save_memory() -> None:
    """Let large arrays of this process have pages of their own, where the C library is glibc.

    It would otherwise put arrays of up to 32 MB side by side; training frees activations in
    another order than it makes them, and with checkpointing or sharding took twice the memory.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 20)


def _at(plan: Plan, micro_batch_size: int) -> Plan:
    return _with(plan, micro_batch_size=micro_batch_size)


def _with(plan: Plan, **settings: object) -> Plan:
    return replace(plan, training=replace(plan.training, **settings))  # type: ignore[arg-type]


def _too_large(
    plan: Plan, config: ModelConfig, room: Callable[[Plan], int], free: int
) -> UsageError:
    """The error for a run that does not fit, with the first remedy that suffices."""
    settings, small = plan.training, _at(plan, 1)
    checkpointed = _with(small, activation_checkpointing=True)
    ways: dict[tuple[str, ...], Plan] = {
        ("micro_batch_size",): small,
        ("activation_checkpointing",): checkpointed,
        ("precision",): replace(checkpointed, precision="bf16"),
    }
    if plan.base and plan.lora is None:
        ways["lora",] = replace(small, lora=LoraConfig())
        ways["lora", "activation_checkpointing"] = replace(checkpointed, lora=LoraConfig())
    names = next((n for n, way in ways.items() if room(way) <= free), ())
    values = {"micro_batch_size": " 1", "precision": " bf16"}
    remedy = " and ".join(name + values.get(name, "") for name in names)
    return UsageError(
        f"batch_size {settings.batch_size} with {settings.micro_batch} sequences of "
        f"{config.context_length} tokens at once needs {room(plan) / 1e9:,.1f} "
        f"GB of memory and {free / 1e9:,.1f} GB are free; "
        + (f"it fits with {remedy}" if remedy else "choose a smaller batch, context or model"),
        "batch_size",
        *names,
    )
