"""Whether a run fits the memory, how much of it to use, and what makes it fit."""

from __future__ import annotations

from dataclasses import replace

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.system import estimate
from gpt2cli.system.memory import available
from gpt2cli.training.state import Plan

_ROW_BYTES = 16  # of a token in the batch of a step, with its mask and segment
_CPU_TOKENS = 8192  # at once: more make a CPU no faster
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


def needed(plan: Plan, config: ModelConfig) -> int:
    """Bytes of memory that a run of a model takes on its device, without what libraries take."""
    settings = plan.training
    trained = trained_parameters(config, plan.lora)
    return (
        estimate.training_bytes(
            config,
            settings.micro_batch,
            plan.precision,
            trained=trained,
            checkpointing=settings.activation_checkpointing,
        )
        + _ROW_BYTES * settings.batch_size * config.context_length
    )


def fitted(plan: Plan, config: ModelConfig, device: str) -> Plan:
    """The plan with a micro-batch that fits the memory, if it does not say one.

    Raises `UsageError`, naming what would make it fit, where it does not.
    """
    free = available(device)
    if plan.training.micro_batch_size is None:
        sizes = [plan.training.batch_size]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        most = _CPU_TOKENS if device == "cpu" else 1 << 60
        small = [size for size in sizes if size * config.context_length <= most] or [1]
        fits = [size for size in small if needed(_at(plan, size), config) <= _SHARE * free]
        plan = _at(plan, fits[0] if fits else 1)
    if 0.9 * (bytes_ := needed(plan, config)) > free:
        raise _too_large(plan, config, bytes_, free)
    return plan


def _at(plan: Plan, micro_batch_size: int) -> Plan:
    return _with(plan, micro_batch_size=micro_batch_size)


def _with(plan: Plan, **settings: object) -> Plan:
    return replace(plan, training=replace(plan.training, **settings))  # type: ignore[arg-type]


def _too_large(plan: Plan, config: ModelConfig, bytes_: int, free: int) -> UsageError:
    """The error for a run that does not fit, with the first remedy that suffices."""
    ways = {
        "micro_batch_size 1": _at(plan, 1),
        "activation_checkpointing": _with(_at(plan, 1), activation_checkpointing=True),
        "precision bf16": replace(
            _with(_at(plan, 1), activation_checkpointing=True), precision="bf16"
        ),
    }
    if plan.base and plan.lora is None:
        ways["lora"] = replace(_with(_at(plan, 1)), lora=LoraConfig())
        both = _with(ways["lora"], activation_checkpointing=True)
        ways["lora and activation_checkpointing"] = both
    enough = (way for way, other in ways.items() if needed(other, config) <= free)
    way = next(enough, "")
    settings = plan.training
    return UsageError(
        f"batch_size {settings.batch_size} with {settings.micro_batch} sequences of "
        f"{config.context_length} tokens at once needs {bytes_ / 1e9:,.1f} GB of memory and "
        f"{free / 1e9:,.1f} GB are free; "
        + (f"{way} makes it fit" if way else "choose a smaller batch, context or model"),
        "batch_size",
        *way.replace(" 1", "").replace(" bf16", "").split(" and "),
    )
