"""`gpt2 bench`: how fast a model is here, and how fast it could be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.progress import download_progress
from gpt2cli.cli.io.terminal import Output, is_watched, notice, visible
from gpt2cli.cli.render.tables import new_table, print_rich

if TYPE_CHECKING:
    from rich.table import Table

    from gpt2cli.analysis.bench import Plan, Report
    from gpt2cli.api import LoadedModel
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.weights.sources import Source


@dataclass(frozen=True)
class Rounds(Group):
    """What is measured"""

    context: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Tokens to read before decoding. May be given several times. "
            "[default: 32, half and seven eighths of the model's context]",
        ),
    ] = None
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens to decode each time. [default: 50, fewer in short contexts]"
        ),
    ] = None
    repeats: Annotated[
        int,
        typer.Option(metavar="N", help="Measured rounds, after one warm-up; medians are shown."),
    ] = 5
    samples: Annotated[
        int,
        typer.Option("--samples", "-s", metavar="N", help="Continuations, decoded as one batch."),
    ] = 1

    def check(self) -> None:
        """Raise `UsageError` for numbers that are wrong for any model."""
        from gpt2cli.analysis.bench import TOKENS, check_counts

        tokens = TOKENS if self.tokens is None else self.tokens
        check_counts(self.context or [], tokens, self.repeats, self.samples)

    def plan(self, context_length: int) -> Plan:
        """What is measured of a model. Raises `UsageError` for what does not fit its context."""
        from gpt2cli.analysis.bench import make_plan

        context = self.context or []
        return make_plan(context_length, context, self.tokens, self.repeats, self.samples)


@grouped
def bench(
    *,
    rounds: Rounds,
    where: options.WhereDecoding,
    as_json: options.Json = False,
    common: options.Common,
) -> None:
    """Measure how fast a model is here, and how fast it could be.

    Decoding a token reads all weights and the KV cache, so the memory's bandwidth, measured
    too, divided by those bytes limits the speed; on a machine that is busy with other work
    neither figure means much. The tokens are random, and so are the weights
    of a model that is not in the cache: nothing is fetched for its speed. One prompt is read
    for all samples; decoding counts the tokens of all.

    \b
    Examples:
      gpt2 bench
      gpt2 bench --model 1558M --precision int4
      gpt2 bench --model bard --precision int8 --context 100 --json
    """
    model = opening.load(where)
    rounds.check()
    is_random = bool(model.source.spec) and not model.source.directory and not model.adapters
    if model.source.spec or model.source.directory:  # else the context is known after fetching
        rounds.plan(model.config.context_length)
    output = Output()
    if not is_random:
        opening.fetch(model)
    plan = rounds.plan(model.config.context_length)
    begun = time.perf_counter()
    decoder = _open(model, plan, is_random, compiled=where.compile_)
    load_seconds = None if is_random else time.perf_counter() - begun
    facts = {
        **model.facts(),
        "weights": "random" if is_random else "real",
        "samples": plan.samples,
        "tokens": plan.tokens,
        "repeats": plan.repeats,
        "load_s": load_seconds,
        **asdict(_measure(decoder, model, plan)),
    }
    if as_json:
        output.write(json.dumps(facts, ensure_ascii=False) + "\n")
    else:
        print_rich(_where(facts), "", _table(facts["contexts"]), "", _summary(facts))


def _open(model: LoadedModel, plan: Plan, is_random: bool, *, compiled: bool) -> Decoder:
    """The decoder alone: its speed needs no vocabulary."""
    from gpt2cli.decoders.opening import open_decoder, open_random
    from gpt2cli.decoders.pages import room_for
    from gpt2cli.system.memory import check_random, check_rows

    config, placement = model.config, model.placement
    longest = plan.contexts[-1] + plan.tokens
    tokens = room_for(plan.samples, longest)
    if compiled:
        model.check_compile()
    if is_random:
        check_random(config, placement, plan.samples, longest, model.name)
        notice(_why_random(model.source), asked=True)
    else:
        check_rows(config, placement, plan.samples, longest)
    with download_progress() as progress:
        if is_random:
            return open_random(config, placement, tokens, progress)
        return open_decoder(
            model.directory,
            placement,
            tokens,
            adapters=model.adapters,
            compiled=compiled,
            progress=progress,
        )


def _measure(decoder: Decoder, model: LoadedModel, plan: Plan) -> Report:
    from gpt2cli.analysis.bench import measure

    with _progress(plan.measurements) as advance:
        return measure(decoder, model.config, model.placement, plan, advance)


def _why_random(source: Source) -> str:
    """The notice that weights are random, why, and how to get the real ones."""
    if source.repo_id is None:
        return f"{source.name} is measured with random weights, for its config names none"
    return (
        f"{source.name} is measured with random weights, for it is not in the cache; "
        f"its own come with: gpt2 models pull {source.repo_id}"
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if stderr is a terminal.

    It is drawn only between measurements, because drawing would slow them down.
    """
    if not is_watched():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bars:
        task = bars.add_task("measuring", total=total)

        def advance() -> None:
            bars.advance(task)
            bars.refresh()

        yield advance


def _where(facts: dict[str, Any]) -> str:
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


def _table(results: list[dict[str, Any]]) -> Table:
    headings = ("context", "prefill\ntokens/s", "decode\ntokens/s", "limit\ntokens/s", "share")
    table = new_table(*headings, text=0)
    for result in results:
        table.add_row(
            f"{result['context']:,}",
            _speed(result["prefill_tokens_per_second"]["median"]),
            _speed(result["decode_tokens_per_second"]["median"]),
            _speed(result["limit_tokens_per_second"]),
            _share(result["share_of_limit"]),
        )
    return table


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.{0 if share >= 0.1 else 1}%}"


def _speed(rate: float) -> str:
    """A rate with three significant digits or more, and at most one decimal."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _summary(facts: dict[str, Any]) -> str:
    first, shortest = facts["time_to_first_token_s"]["median"], facts["contexts"][0]["context"]
    peak = facts["peak_memory_bytes"]
    loaded = f"Loaded in {facts['load_s']:.2f} s; first" if facts["load_s"] else "First"
    lines = [
        f"{loaded} token after {first:.3f} s from "
        f"{shortest:,} tokens, {facts['first_prefill_s']:.3f} s the first time",
        f"The memory is read at {facts['bandwidth_bytes_per_second'] / 1e9:,.1f} GB/s"
        + (f"; {peak / 1e6:,.0f} MB were in use at most" if peak else ""),
        f"Medians of {facts['repeats']}, with {facts['tokens']} tokens decoded each time",
    ]
    if any(result["share_of_limit"] is None for result in facts["contexts"]):
        size = facts["cache_bytes"]
        lines.append(
            "-: what a step reads fits the cache"
            + (f" of {size / 1e6:,.0f} MB" if size else "")
            + ", in whole or in part, so that memory is not the limit"
        )
    return "\n".join(lines)
