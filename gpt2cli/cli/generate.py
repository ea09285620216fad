"""`gpt2 generate`: continue a prompt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import __version__
from gpt2cli.cli import options
from gpt2cli.cli.terminal import (
    Output,
    complain,
    download_progress,
    notice,
    read_argument,
    read_text,
    token_progress,
)
from gpt2cli.config import SamplingConfig
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.device import Placement
    from gpt2cli.generation import Event, GenerationConfig
    from gpt2cli.record import Recorder
    from gpt2cli.sources import Source


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="Text to continue; - reads stdin. Piped text comes before it."),
    ] = None,
    model: options.Model = "124M",
    max_tokens: options.MaxTokens = 100,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    samples: Annotated[
        int, typer.Option("--samples", "-s", help="Continuations, generated as one batch.")
    ] = 1,
    echo: Annotated[
        bool | None,
        typer.Option("--echo/--no-echo", help="Print the prompt too. [default: on a terminal]"),
    ] = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print when all is done, not as it comes.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line and sample.")
    ] = False,
    file: options.File = None,
    keep_newline: options.KeepNewline = False,
    no_special: options.NoSpecial = False,
    overflow: Annotated[
        str,
        typer.Option(
            metavar="slide|error",
            help="When the context is full: drop the oldest tokens, or refuse.",
        ),
    ] = "slide",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile PyTorch's decoding step first, for a minute or more: for long runs.",
        ),
    ] = False,
    threads: options.Threads = None,
    offline: options.Offline = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt with GPT-2; without one, begin from nothing.

    The text streams to stdout. On a terminal the prompt is shown too and control
    characters are made visible; into a pipe goes the bare continuation, byte for byte.

    \b
    Examples:
      gpt2 generate "Hello, I'm a language model," -n 50
      gpt2 generate --model bard --temperature 0 "ROMEO:"
      cat notes.txt | gpt2 generate "In short:" --stop "." --json
      gpt2 generate -s 3 --seed 7 "The best thing about Mondays is"
    """
    from gpt2cli.device import check_names, limit_threads, place

    if threads is not None:
        limit_threads(threads)
    from gpt2cli import generation, runtime, sources
    from gpt2cli.record import Recorder

    if overflow not in ("slide", "error"):
        raise UsageError(f"overflow must be slide or error, not {overflow!r}")
    check_names(device, dtype)
    source = sources.resolve(model)
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    config = generation.GenerationConfig(
        sampling=replace(source.generation, **{k: v for k, v in given.items() if v is not None}),
        max_tokens=max_tokens,
        samples=samples,
        seed=generation.new_seed() if seed is None else seed,
        stop=tuple(read_argument(text) for text in stop or ()),
        ignore_eos=ignore_eos,
    )
    text = read_text(prompt, file, keep_newline) or ""
    output = Output()
    placement = place(device, dtype)
    runtime.check_quantize(quantize, placement)
    runtime.check_compile(compile_, placement)
    with download_progress() as progress:
        source = sources.fetch(source, offline=offline, progress=progress)
    begun = time.perf_counter()
    tokenizer = runtime.open_tokenizer(source)
    ids = runtime.encode_prompt(tokenizer, text, special=not no_special)
    window = runtime.fit(ids, source, max_tokens, refuse=overflow == "error")
    if len(window) < len(ids):
        complain(f"the prompt is too long: its first {len(ids) - len(window)} tokens are dropped")
    if compile_:
        notice("compiling the decoding step takes a minute or more", asked=verbose)
    capacity = len(window) + max_tokens
    with download_progress() as progress:
        decoder = runtime.open_decoder(
            source, placement, samples, capacity, quantize, progress, compiled=compile_
        )
    load_seconds = time.perf_counter() - begun

    recorder = Recorder(samples)
    events = recorder.watch(generation.generate(decoder, tokenizer, ids, config))
    if echo is None:
        echo = output.terminal
    shown_prompt = text if echo else ""
    if as_json or no_stream or samples > 1:
        interrupted = _exhaust(events, samples * max_tokens)
    else:
        interrupted = _stream(events, output, shown_prompt)
    facts = _facts(source, placement, config, overflow, load_seconds, recorder)
    facts |= {"engine": runtime.engine_name(placement), "quantize": quantize}
    if as_json:
        for i, sample in enumerate(recorder.samples):
            record = {"prompt": text, "sample": i, **asdict(sample), **facts}
            output.write(json.dumps(record, ensure_ascii=False) + "\n")
    elif no_stream or samples > 1:
        _print_samples([shown_prompt + sample.text for sample in recorder.samples], output)
    _report(facts, recorder, asked=verbose, drawn=seed is None)
    if interrupted:
        raise KeyboardInterrupt


def _exhaust(events: Iterator[Event], total: int) -> bool:
    """Run to the end, at most `total` events; True if Ctrl-C came first."""
    try:
        with token_progress(total) as advance:
            for _ in events:
                advance()
    except KeyboardInterrupt:
        return True
    return False


def _stream(events: Iterator[Event], output: Output, prompt: str) -> bool:
    """Show the text as it comes; True if Ctrl-C came first."""
    try:
        output.write(prompt)
        for event in events:
            output.write(event.text)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    if output.terminal and interrupted:
        output.write("\n")  # the terminal itself has just written ^C
    elif output.terminal:
        output.end_line()
    return interrupted


def _print_samples(texts: list[str], output: Output) -> None:
    """One text as it is; several each under a line that numbers it."""
    for i, text in enumerate(texts, start=1):
        if len(texts) > 1:
            output.write(f"--- {i}/{len(texts)} ---\n")
        output.write(text)
        if len(texts) > 1 or output.terminal:
            output.end_line()


def _facts(
    source: Source,
    placement: Placement,
    config: GenerationConfig,
    overflow: str,
    load_seconds: float,
    recorder: Recorder,
) -> dict[str, Any]:
    """What a run needs to be repeated, and how it went."""
    sampling: SamplingConfig = config.sampling
    return {
        "seed": config.seed,
        "model": source.name,
        "repo_id": source.repo_id,
        "revision": source.revision,
        "device": placement.device,
        "dtype": placement.dtype,
        "version": __version__,
        "sampling": asdict(sampling),
        "max_tokens": config.max_tokens,
        "samples": config.samples,
        "stop": list(config.stop),
        "ignore_eos": config.ignore_eos,
        "overflow": overflow,
        "timings": {
            "load_s": load_seconds,
            "time_to_first_token_s": recorder.time_to_first_token,
            "tokens_per_second": recorder.tokens_per_second,
        },
    }


def _report(facts: dict[str, Any], recorder: Recorder, *, asked: bool, drawn: bool) -> None:
    if asked:
        first, speed = recorder.time_to_first_token, recorder.tokens_per_second
        parts = [
            f"{facts['model']} on {facts['device']} in {facts['quantize'] or facts['dtype']}, "
            f"{facts['engine']} engine",
            f"loaded in {facts['timings']['load_s']:.2f} s",
            f"first token after {first:.3f} s" if first is not None else "no token",
            f"{recorder.tokens} tokens",
            f"{speed:.1f} tokens/s" if speed else "",
        ]
        complain(", ".join(part for part in parts if part))
    if drawn and facts["sampling"]["temperature"] > 0:
        notice(f"seed {facts['seed']} (--seed {facts['seed']} repeats this)", asked=asked)
