"""`gpt2 info`: how large a model is, what it needs, and whether this machine has it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.terminal import Output, visible
from gpt2cli.cli.render.tables import new_table, print_rich
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import shipped_specs
from gpt2cli.decoders import native
from gpt2cli.errors import UsageError
from gpt2cli.system import estimate, machine
from gpt2cli.weights import sources

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Tables(Group):
    """What is shown"""

    show_all: Annotated[bool, typer.Option("--all", help="A table of all models.")] = False
    fit: Annotated[
        bool, typer.Option("--fit", help="Which models fit this machine, in which precision.")
    ] = False
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAME",
            autocompletion=options.complete_config,
            help="Compare the model with another, such as gpt3.",
        ),
    ] = None


Model = Annotated[
    str,
    options.setting(
        "--model",
        "-m",
        metavar="NAME",
        autocompletion=options.complete_config,
        rich_help_panel="Model and machine",
        help="Config name or alias (124M, medium, gpt3, …), YAML file, directory, "
        "or hub repository (owner/name) that was fetched.",
    ),
]


@grouped
def info(
    *,
    model: Model = "124M",
    adapter: options.Adapter = None,
    tables: Tables,
    as_json: options.Json = False,
    common: options.Common,
) -> None:
    """Show a model's size, and whether this machine has the memory.

    Computed from the model's config: nothing is downloaded. MB is 10^6 bytes, GB 10^9.

    \b
    Examples:
      gpt2 info --model 774M
      gpt2 info --adapter tuned
      gpt2 info --fit
      gpt2 info --model 1558M --compare gpt3
    """
    if tables.show_all + tables.fit + (tables.compare is not None) > 1:
        raise UsageError("--all, --fit and --compare are different tables; choose one")
    if adapter and (tables.show_all or tables.fit or tables.compare):
        raise UsageError("--adapter belongs to one model, not to a table of several")
    here, compare = machine.detect(), tables.compare
    if tables.show_all or tables.fit:
        models = {spec.name: spec.model for spec in shipped_specs()}
        data: dict[str, Any] = _fit(models, here) if tables.fit else _all(models)
    else:
        found = [sources.resolve(name) for name in (model, *([compare] if compare else []))]
        models = {source.name: source.config() for source in found}
        data = {
            name: {**_about(name, config, here), "adapters": _adapters(adapter, config)}
            for name, config in models.items()
        }
        data = data if compare else data[found[0].name]
    if as_json:
        Output().write(json.dumps(data, ensure_ascii=False) + "\n")
    elif tables.fit:
        print_rich(_fit_table(data), _machine_line(here))
    elif tables.show_all:
        print_rich(_all_table(models))
    elif compare:
        print_rich(_compare_table(models))
    else:
        print_rich(*_single(found[0].name, models[found[0].name], here))
        print_rich(*map(_adapter_line, data["adapters"]))


def _about(name: str, config: ModelConfig, here: machine.Machine) -> dict[str, Any]:
    return {
        "model": name,
        **estimate.describe(config),
        "history": asdict(history) if (history := estimate.history(name)) else None,
        "machine": asdict(here),
        "cpu_engine": "NumPy" if native.why_not() else "native",
        "fits": estimate.inference_bytes(config, _auto(here)) <= here.memory_available,
    }


def _adapters(names: list[str] | None, config: ModelConfig) -> list[dict[str, Any]]:
    """What adapters add to a model. Raises `WeightsError` for one of another size."""
    if not names:
        return []
    from gpt2cli.weights import adapter, merging

    found = []
    for chosen in map(merging.choose, names):
        read = adapter.read(chosen.directory, config)
        found.append({"adapter": str(chosen), "parameters": read.parameters, **read.describe()})
    return found


def _auto(here: machine.Machine) -> str:
    """The precision that `--precision auto` means on this machine."""
    return "bf16" if here.device == "cuda" else "fp32"


def _all(models: dict[str, ModelConfig]) -> dict[str, Any]:
    return {name: estimate.describe(config) for name, config in models.items()}


def _fit(models: dict[str, ModelConfig], here: machine.Machine) -> dict[str, Any]:
    needed = {
        name: {p: estimate.inference_bytes(config, p) for p in estimate.SHOWN}
        for name, config in models.items()
    }
    models_fit = {
        name: {p: {"bytes": b, "fits": b <= here.memory_available} for p, b in by_precision.items()}
        for name, by_precision in needed.items()
    }
    return {"machine": asdict(here), "models": models_fit}


# Rendering.


_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


def _size(count: float) -> str:
    """Bytes as text, in decimal units."""
    factor, unit = next((u for u in _UNITS if count >= u[0]), _UNITS[-1])
    return f"{count / factor:.{1 if unit == 'MB' else 2}f} {unit}"


def _short(count: float) -> str:
    """Bytes as text with three digits, for wide tables."""
    factor, unit = next((u for u in _UNITS if count >= u[0]), _UNITS[-1])
    whole = len(f"{count / factor:.0f}")
    return f"{count / factor:.{max(0, 3 - whole)}f} {unit}"


def _big(count: float) -> str:
    """A count of operations or tokens as text."""
    units = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
    factor, unit = next((u for u in units if count >= u[0]), (1, ""))
    return f"{count / factor:,.1f} {unit}"


def _machine_line(here: machine.Machine) -> str:
    absent = native.why_not()
    cpu = f"NumPy, for the native engine is absent: {absent}" if absent else "the native engine"
    return (
        f"\nThis machine: {here.device} ({here.name}), {here.cores} cores, "
        f"{_size(here.memory_available)} of {_size(here.memory_total)} free\n"
        f"A CPU decodes with {cpu}"
    )


def _adapter_line(adapter: dict[str, Any]) -> str:
    ranks = " and ".join(map(str, adapter["ranks"]))
    whole = [f"{', '.join(adapter['saved'])} as a whole"] if adapter["saved"] else []
    updates = [f"rank {ranks} on {', '.join(adapter['targets'])}"] if ranks else []
    return (
        f"Adapter {visible(adapter['adapter'])}: {adapter['parameters']:,} parameters, "
        f"{'; '.join(updates + whole)}"
    )


def _single(name: str, config: ModelConfig, here: machine.Machine) -> list[Any]:
    counts = new_table(f"{name}: parameters", "count", "share")
    total = estimate.total_parameters(config)
    for component, count in estimate.parameters(config).items():
        counts.add_row(component, f"{count:,}", f"{count / total:.1%}")
    counts.add_row("total", f"{total:,}", "")
    untied = estimate.total_parameters(config, tied=False)
    counts.add_row("total with an untied head", f"{untied:,}", "")

    context = config.context_length
    full = f"KV cache, {context:,} tokens"
    memory = new_table("memory", "weights", "KV cache per token", full, "inference")
    for precision in estimate.SHOWN:
        memory.add_row(
            precision,
            _size(estimate.weight_bytes(config, precision)),
            f"{estimate.kv_cache_bytes(config, precision, 1) / 1e3:,.1f} kB",
            _size(estimate.kv_cache_bytes(config, precision, context)),
            _size(estimate.inference_bytes(config, precision)),
        )

    precision = _auto(here)
    needed = estimate.inference_bytes(config, precision)
    verdict = "fits" if needed <= here.memory_available else "does not fit"
    return [
        counts,
        "",
        memory,
        f"\nTraining with AdamW in fp32, one sequence of {context:,} tokens: "
        f"{_size(estimate.training_bytes(config))}",
        f"Operations per token: {_big(estimate.flops_per_token(config))}FLOP at the beginning, "
        f"{_big(estimate.flops_per_token(config, context - 1))}FLOP at the end of the context",
        _machine_line(here),
        f"Here it runs in {precision} and {verdict}: it needs up to {_size(needed)}",
    ]


def _all_table(models: dict[str, ModelConfig]) -> Table:
    """A table 80 columns wide; memory is for inference with a full context."""
    table = new_table("model", "parameters", "layers\n× width", *estimate.SHOWN, "training")
    for name, config in models.items():
        table.add_row(
            name,
            f"{estimate.total_parameters(config) / 1e6:,.1f} M",
            f"{config.n_layers} × {config.emb_dim}",
            *(_short(estimate.inference_bytes(config, p)) for p in estimate.SHOWN),
            _short(estimate.training_bytes(config)),
        )
    return table


def _fit_table(data: dict[str, Any]) -> Table:
    table = new_table("full context", *estimate.SHOWN)
    for name, verdicts in data["models"].items():
        cells = (
            f"{_short(v['bytes'])} {'fits' if v['fits'] else 'too big'}" for v in verdicts.values()
        )
        table.add_row(name, *cells)
    return table


def _compare_table(models: dict[str, ModelConfig]) -> Table:
    table = new_table("", *models)
    configs = list(models.values())
    history = [estimate.history(name) for name in models]

    def row(label: str, *cells: str) -> None:
        table.add_row(label, *cells)

    row("parameters", *(f"{estimate.total_parameters(c):,}" for c in configs))
    row("layers", *(f"{c.n_layers}" for c in configs))
    row("heads", *(f"{c.n_heads}" for c in configs))
    row("width", *(f"{c.emb_dim:,}" for c in configs))
    row("context, tokens", *(f"{c.context_length:,}" for c in configs))
    row("year", *(str(h.year) if h else "" for h in history))
    row("training tokens", *(_training_tokens(h) for h in history))
    row("training text", *(h.training_text if h else "" for h in history))
    row("weights in fp32", *(_size(estimate.weight_bytes(c, "fp32")) for c in configs))
    row("weights in bf16", *(_size(estimate.weight_bytes(c, "bf16")) for c in configs))
    row("inference in bf16", *(_size(estimate.inference_bytes(c, "bf16")) for c in configs))
    row("80 GB GPUs for that", *(f"{estimate.gpus_needed(c)}" for c in configs))
    row("training with AdamW", *(_size(estimate.training_bytes(c)) for c in configs))
    row("FLOP per token", *(_big(estimate.flops_per_token(c)) for c in configs))
    row("source", *(h.source if h else "" for h in history))
    return table


def _training_tokens(history: estimate.History | None) -> str:
    """The number of training tokens as text; empty for models without a paper."""
    if history is None:
        return ""
    return _big(history.training_tokens) if history.training_tokens else "not published"
