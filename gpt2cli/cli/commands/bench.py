"""`gpt2 bench`: how fast a model is here, and how fast it could be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import __version__
from gpt2cli.cli import options
from gpt2cli.cli.io.progress import fetch, open_decoder, open_random
from gpt2cli.cli.io.terminal import Output, is_watched, new_table, notice, print_rich, visible

if TYPE_CHECKING:
    from rich.table import Table

    from gpt2cli.analysis.bench import Result
    from gpt2cli.weights.sources import Source


def bench(
    model: options.Model = "124M",
    context: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Tokens to read before decoding. May be given several times. "
            "[default: 32, half and seven eighths of the model's context]",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens to decode each time. [default: 50, fewer in short contexts]"
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Rounds; the medians count, after one that does not.")
    ] = 5,
    samples: Annotated[
        int,
        typer.Option("--samples", "-s", metavar="N", help="Continuations, decoded as one batch."),
    ] = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Measure how fast a model is here, and how fast it could be.

    Decoding a token reads all weights and the KV cache, so the memory's bandwidth, measured
    too, divided by those bytes is the limit of the speed; on a machine that is busy with
    something else neither figure means much. The tokens are random, and so are the weights
    of a model that is not in the cache: nothing is fetched for its speed. One prompt is read
    for all samples; decoding counts the tokens of all.

    \b
    Examples:
      gpt2 bench
      gpt2 bench --model 1558M --quantize int4
      gpt2 bench --model bard --quantize int8 --context 100 --json
    """
    from gpt2cli.system.device import check_names, limit_threads, place

    if threads is not None:
        limit_threads(threads)
    from gpt2cli.analysis import bench as library
    from gpt2cli.decoders import opening
    from gpt2cli.weights import sources

    check_names(device, dtype)
    source = sources.resolve(model)
    contexts = context or []
    library.check_counts(contexts, library.TOKENS if tokens is None else tokens, repeats, samples)
    if source.spec or source.directory:  # else its context is known only when it is fetched
        library.make_plan(source.config().context_length, contexts, tokens, repeats, samples)
    output = Output()
    placement = place(device, dtype)
    opening.check_quantize(quantize, placement)
    random = source.spec is not None and source.directory is None
    if not random:
        source = fetch(source, offline)
    config = source.config()
    plan = library.make_plan(config.context_length, contexts, tokens, repeats, samples)
    capacity = plan.contexts[-1] + plan.tokens
    if random:
        opening.check_random(source, placement, quantize, samples, capacity)
        notice(_why_random(source), asked=True)
    begun = time.perf_counter()
    open_any = open_random if random else open_decoder
    decoder = open_any(source, placement, config.vocab_size, samples, capacity, quantize)
    load_seconds = None if random else time.perf_counter() - begun
    with _progress(plan.measurements) as advance:
        report = library.measure(decoder, config, placement, quantize, plan, advance)
    facts = {
        "model": source.name,
        "weights": "random" if random else "real",
        "repo_id": source.repo_id,
        "revision": source.revision,
        "device": placement.device,
        "dtype": placement.dtype,
        "quantize": quantize,
        "engine": opening.engine_name(placement),
        "version": __version__,
        "samples": samples,
        "tokens": plan.tokens,
        "repeats": repeats,
        "load_s": load_seconds,
        **asdict(report),
    }
    if as_json:
        output.write(json.dumps(facts, ensure_ascii=False) + "\n")
    else:
        print_rich(_where(facts), "", _table(report.contexts), "", _summary(facts))


def _why_random(source: Source) -> str:
    """That weights are random, why, and how to get others."""
    if source.repo_id is None:
        return f"{source.name} is measured with random weights, for its config names none"
    return (
        f"{source.name} is measured with random weights, for it is not in the cache; "
        f"its own come with: gpt2 models pull {source.repo_id}"
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if a person looks on.

    It is drawn only between measurements, for drawing takes time from what is measured.
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
        f"in {facts['quantize'] or facts['dtype']}",
        f"{facts['engine']} engine",
        f"{threads} thread{'s' if threads > 1 else ''}" if threads else "",
        f"{samples} samples at once" if samples > 1 else "",
    ]
    return ", ".join(part for part in parts if part)


def _table(results: tuple[Result, ...]) -> Table:
    headings = ("context", "prefill\ntokens/s", "decode\ntokens/s", "limit\ntokens/s", "share")
    table = new_table(*headings, text=0)
    for result in results:
        table.add_row(
            f"{result.context:,}",
            _speed(result.prefill_tokens_per_second.median),
            _speed(result.decode_tokens_per_second.median),
            _speed(result.limit_tokens_per_second),
            _share(result.share_of_limit),
        )
    return table


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.{0 if share >= 0.1 else 1}%}"


def _speed(rate: float) -> str:
    """Three digits at least, and no more decimals than tell something."""
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
