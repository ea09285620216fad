"""What `gpt2 bench` measured, for people: tables and lines, from the object that `--json` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import visible
from gpt2cli.cli.render.tables import new_table, print_rich

if TYPE_CHECKING:
    from rich.table import Table

Facts = Mapping[str, Any]


def show(facts: Facts) -> None:
    """Print all of it."""
    parts: list[Any] = [_where(facts), "", _contexts(facts["contexts"]), ""]
    if facts["sequences"]:
        parts += [_sequences(facts["sequences"]), ""]
    print_rich(*parts, "\n".join(_summary(facts)))


def _where(facts: Facts) -> str:
    threads, samples = facts["threads"], facts["samples"]
    parts = [
        visible(facts["model"])
        + (" with random weights" if facts["weights"] == "random" else "")
        + f" on {facts['device']} ({visible(facts['device_name'])}) "
        f"in {facts['precision']}",
        f"{facts['engine']} engine",
        f"{threads} thread{'s' if threads > 1 else ''}" if threads else "",
        f"{samples} samples at once" if samples > 1 else "",
    ]
    return ", ".join(part for part in parts if part)


def _contexts(results: Sequence[Facts]) -> Table:
    headings = ("context", "prefill\ntokens/s", "decode\ntokens/s", "limit\ntokens/s", "share")
    table = new_table(*headings, text=0)
    for result in results:
        table.add_row(
            f"{result['context']:,}",
            _speed(result["prefill_tokens_per_second"]["median"]),
            *_decoding(result),
        )
    return table


def _sequences(results: Sequence[Facts]) -> Table:
    headings = (
        *("sequences", "decode\ntokens/s", "limit\ntokens/s", "share", "gap\nms"),
        *("first token\nms", "longest gap\nms"),
    )
    table = new_table(*headings, text=0)
    for result in results:
        times = (result[name] for name in ("gap_s", "time_to_first_token_s", "longest_gap_s"))
        table.add_row(
            f"{result['sequences']:,}",
            *_decoding(result),
            *(_speed(1000 * time["median"]) for time in times),
        )
    return table


def _decoding(result: Facts) -> tuple[str, str, str]:
    return (
        _speed(result["decode_tokens_per_second"]["median"]),
        _speed(result["limit_tokens_per_second"]),
        _share(result["share_of_limit"]),
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.{0 if share >= 0.1 else 1}%}"


def _speed(rate: float) -> str:
    """A number with three significant digits or more, and at most one decimal."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _summary(facts: Facts) -> list[str]:
    first, shortest = facts["time_to_first_token_s"]["median"], facts["contexts"][0]["context"]
    peak, repeats, cache = facts["peak_memory_bytes"], facts["repeats"], facts["cache_bytes"]
    loaded = f"Loaded in {facts['load_s']:.2f} s; first" if facts["load_s"] else "First"
    lines = [
        f"{loaded} token after {first:.3f} s from "
        f"{shortest:,} tokens, {facts['first_prefill_s']:.3f} s the first time",
        f"The memory is read at {facts['bandwidth_bytes_per_second'] / 1e9:,.1f} GB/s"
        + (f"; {peak / 1e6:,.0f} MB were in use at most" if peak else ""),
        (f"Medians of {repeats}" if repeats > 1 else "Measured once")
        + f", with {facts['tokens']} tokens decoded each time"
        + ("; interrupted" if facts["interrupted"] else ""),
    ]
    if facts["sequences"]:
        prompt = facts["sequences"][0]["prompt"]
        lines.append(
            f"While a prompt of {prompt:,} comes in: the time to its first token, and the longest "
            "gap"
        )
    if facts["bandwidth_seen_in"] == "decoding":
        lines.append(
            "No reading was as fast as the model's own fastest round, which stands for the limit"
        )
    results = [*facts["contexts"], *facts["sequences"]]
    if any(result["share_of_limit"] is None for result in results):
        lines.append(
            f"-: what a step reads fits the cache of {cache / 1e6:,.0f} MB, so that memory is not "
            "the limit"
        )
    return lines
