"""`gpt2 generate`: continue a prompt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import __version__
from gpt2cli.cli import options
from gpt2cli.cli.io.inputs import (
    append_to_file,
    check_writable,
    read_argument,
    read_file,
    read_text,
)
from gpt2cli.cli.io.progress import fetch, open_decoder, token_progress
from gpt2cli.cli.io.terminal import Output, complain, complain_of_dropped, notice
from gpt2cli.cli.render.explain_view import show_stages
from gpt2cli.cli.usage import is_typed
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.generation.record import Recorder
    from gpt2cli.generation.request import Event, GenerationConfig
    from gpt2cli.sampling.constraint import Constraint
    from gpt2cli.system.device import Placement
    from gpt2cli.text.tokenizer import Tokenizer
    from gpt2cli.weights.sources import Source


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Text to continue; - reads stdin. Piped text comes before it."
        ),
    ] = None,
    model: options.Model = "124M",
    max_tokens: options.MaxTokens = 100,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    no_repeat_ngram: options.NoRepeatNgram = None,
    dry_multiplier: options.DryMultiplier = None,
    dry_base: options.DryBase = None,
    dry_allowed_length: options.DryAllowedLength = None,
    dry_breaker: options.DryBreaker = None,
    typical_p: options.TypicalP = None,
    xtc_probability: options.XtcProbability = None,
    xtc_threshold: options.XtcThreshold = None,
    mirostat_tau: options.MirostatTau = None,
    mirostat_eta: options.MirostatEta = None,
    bias: options.Bias = None,
    beams: options.Beams = None,
    length_penalty: options.LengthPenalty = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    choice: options.Choice = None,
    grammar: options.Grammar = None,
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = None,
    explain_sampling: Annotated[
        bool,
        typer.Option(
            "--explain-sampling",
            help="Show what each rule does to the first token's candidates, and generate nothing.",
        ),
    ] = False,
    seed: options.Seed = None,
    stop: options.Stop = None,
    min_tokens: options.MinTokens = 0,
    ignore_eos: options.IgnoreEos = False,
    samples: Annotated[
        int,
        options.setting(
            "--samples", "-s", metavar="N", help="Continuations, generated as one batch."
        ),
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
    logprobs: options.Logprobs = None,
    file: options.File = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="With --file: go on with it as it is, and write the text behind it."
        ),
    ] = False,
    keep_newline: options.KeepNewline = False,
    no_special: options.NoSpecial = False,
    overflow: Annotated[
        str,
        options.setting(
            "--overflow",
            metavar="NAME",
            autocompletion=options.one_of("slide", "error"),
            help="When the context is full: slide drops the oldest tokens, error refuses.",
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
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
    prompt_option: Annotated[
        str | None, typer.Option("--prompt", hidden=True, help="What other programs call it.")
    ] = None,
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
      gpt2 generate "Is water wet? Answer:" --choice " yes" --choice " no"
      gpt2 generate -m 1558M --draft 124M --quantize int8 "In a shocking finding,"
      gpt2 generate --file story.txt --append

    \b
    A loop that reads from a pipe would lose its other lines to the first command:
      ls | while read -r p; do gpt2 generate -- "$p" < /dev/null; done
    """
    from gpt2cli.system.device import check_names, limit_threads, place

    if threads is not None:
        limit_threads(threads)
    from gpt2cli.decoders import opening
    from gpt2cli.generation import loop, speculative
    from gpt2cli.generation.record import Recorder
    from gpt2cli.sampling import bias as biases
    from gpt2cli.weights import sources

    check_names(device, dtype)
    source = sources.resolve(model)
    drafter = None if draft in (None, speculative.NGRAM) else sources.resolve(str(draft))
    base = SamplingConfig(temperature=0) if beams else source.generation
    _check_company(context, base)
    if prompt_option is not None:
        if prompt is not None:
            raise UsageError("there are two prompts; leave out --prompt or the argument")
        prompt = prompt_option
    config = options.configure(context, base, constraint=_constraint(context))
    most = speculative.MOST_TOKENS if draft_tokens is None else draft_tokens
    if draft is not None:
        speculative.check(config, most)
    biased = biases.parse([read_argument(text) for text in bias or ()])
    text = _continued(file, prompt) if append else read_text(prompt, file, keep_newline) or ""
    output = Output()
    placement = place(device, dtype)
    opening.check_quantize(quantize, placement)
    opening.check_compile(compile_, placement)
    vocabulary = fetch(source, offline, vocabulary_only=True)
    tokenizer = opening.open_tokenizer(vocabulary)
    if drafter:
        other = opening.open_tokenizer(fetch(drafter, offline, vocabulary_only=True))
        speculative.check_vocabulary((drafter.name, source.name), (other, tokenizer))
    config = replace(config, bias=biases.resolve(biased, tokenizer))
    ids = opening.encode_prompt(tokenizer, text, special=not no_special)
    window = opening.fit(ids, vocabulary, max_tokens, refuse=overflow == "error")
    complain_of_dropped(len(ids) - len(window))
    choices = list(dict.fromkeys(map(read_argument, choice or []))) if as_json else []
    rows, shared = _encoded(choices, text, tokenizer, vocabulary, special=not no_special)
    if compile_:
        notice("compiling the decoding step takes a minute or more", asked=verbose)
    capacity = max(len(window) + max_tokens, *map(len, rows), 0)
    if beams:
        opening.check_memory(vocabulary, placement, quantize, beams, capacity, beams=True)
    source = fetch(source, offline)
    drafter = fetch(drafter, offline) if drafter else None

    begun = time.perf_counter()
    decoder = open_decoder(
        source, placement, tokenizer.size, beams or samples, capacity, quantize, compile_, verbose
    )
    proposer: speculative.Draft | None = speculative.NgramDraft() if draft else None
    if drafter:
        smaller = open_decoder(
            drafter, placement, tokenizer.size, 1, len(ids) + max_tokens, quantize
        )
        proposer = speculative.ModelDraft(smaller)
    load_seconds = time.perf_counter() - begun

    if explain_sampling:
        stages = loop.explain(decoder, tokenizer, ids, config)
        show_stages(stages, tokenizer, output, as_json=as_json)
        return
    tally = speculative.Tally()
    if beams:
        events = _searched(decoder, tokenizer, ids, config)
    elif proposer is None:
        events = loop.generate(decoder, tokenizer, ids, config)
    else:
        events = speculative.generate(decoder, proposer, tokenizer, ids, config, tally, most)
    recorder = Recorder(samples, streamed=not beams)
    events = recorder.watch(events)
    if append and file:
        events = _appended(events, file)
    shown_prompt = text if (output.terminal if echo is None else echo) else ""
    at_the_end = as_json or no_stream or samples > 1 or beams is not None
    if at_the_end:
        interrupted = _exhaust(events if beams else _counted(events, samples * max_tokens))
    else:
        interrupted = _stream(events, output, shown_prompt)

    facts = _facts(source, placement, config, overflow, load_seconds, recorder)
    facts |= {"engine": opening.engine_name(placement), "quantize": quantize}
    facts["draft"] = None if draft is None else {"name": draft, "tokens": most, **tally.facts()}
    if as_json:
        chances = {} if interrupted else _weighed(decoder, rows, shared, choices)
        _print_json(text, config, facts, recorder, chances, output)
    elif at_the_end:
        _print_samples([shown_prompt + sample.text for sample in recorder.samples], output)
    if verbose:
        complain(_summary(opening.describe(source, placement, quantize), facts, recorder))
    if seed is None and config.sampling.temperature > 0:
        notice(f"seed {config.seed} (--seed {config.seed} repeats this)", asked=verbose)
    if interrupted:
        raise KeyboardInterrupt
    if config.constraint:
        recorder.check_matched(max_tokens)


# Options that only change what another one does.
_COMPANIONS = {
    "length_penalty": "beams",
    "draft_tokens": "draft",
    "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier",
    "dry_breaker": "dry_multiplier",
    "xtc_threshold": "xtc_probability",
    "mirostat_eta": "mirostat_tau",
}


def _check_company(context: typer.Context, base: SamplingConfig) -> None:
    """Refuse options that mean nothing without another, or with it."""
    given = context.params
    for name, other in _COMPANIONS.items():
        if is_typed(name, context) and given[other] is None and getattr(base, other, None) is None:
            raise UsageError(f"{name} needs {other}", name, other)
    if given["overflow"] not in ("slide", "error"):
        raise UsageError(f"overflow must be slide or error, not {given['overflow']!r}", "overflow")
    if given["logprobs"] is not None and not given["as_json"]:
        raise UsageError("--logprobs needs --json, which is where they appear")
    others = [name for name in ("as_json", "explain_sampling") if given[name]]
    others += ["samples"] if given["samples"] > 1 else []
    if given["append"] and others:
        raise UsageError(
            f"append and {others[0]} cannot go together; leave one of them out", "append", others[0]
        )
    if given["explain_sampling"] and given["beams"] is not None:
        raise UsageError("--beams samples nothing that --explain-sampling could explain")
    if given["explain_sampling"] and given["draft"] is not None:
        raise UsageError("--explain-sampling is about the first token, which no --draft proposes")


def _continued(file: Path | None, prompt: str | None) -> str:
    """All that a file holds, which is to be continued there. Raises `UsageError` if it cannot."""
    if file is None or prompt is not None:
        raise UsageError("--append needs a --file that is all of the prompt")
    if file.exists() and not file.is_file():
        raise UsageError(f"cannot append to {file}: it is no regular file")
    check_writable(file)
    return read_file(file)


def _appended(events: Iterator[Event], file: Path) -> Iterator[Event]:
    """Events whose text is in the file before it is shown."""
    for event in events:
        append_to_file(file, event.text)
        yield event


def _constraint(context: typer.Context) -> Constraint | None:
    from gpt2cli.sampling import constraint

    given = context.params
    return constraint.resolve(
        regex=None if given["regex"] is None else read_argument(given["regex"]),
        json_schema=given["json_schema"],
        choice=[read_argument(text) for text in given["choice"]] if given["choice"] else None,
        grammar=given["grammar"],
    )


def _encoded(
    choices: list[str], text: str, tokenizer: Tokenizer, vocabulary: Source, *, special: bool
) -> tuple[list[list[int]], int]:
    """`ranking.encode`, where there are choices to be weighed."""
    if not choices:
        return [], 0
    from gpt2cli.analysis import ranking

    context_length = vocabulary.config().context_length
    return ranking.encode(tokenizer, text, choices, context_length, special=special)


def _weighed(
    decoder: Decoder, rows: list[list[int]], shared: int, choices: list[str]
) -> dict[str, dict[str, Any]]:
    """How probable the model finds each choice, as `gpt2 score --choices` does."""
    from gpt2cli.analysis import ranking

    found = ranking.weigh(decoder, rows, shared, choices) if choices else []
    return {
        c.text: {"text": c.text, "log_probability": c.log_probability, "share": c.share}
        for c in found
    }


def _searched(
    decoder: Decoder, tokenizer: Tokenizer, ids: Sequence[int], config: GenerationConfig
) -> Iterator[Event]:
    """What beam search finds, behind a bar while it searches."""
    from gpt2cli.generation import beam

    with token_progress(config.max_tokens) as advance:
        found = list(beam.generate(decoder, tokenizer, ids, config, advance))
    yield from found


def _counted(events: Iterator[Event], total: int) -> Iterator[Event]:
    """Events behind a bar; there are `total` of them at the most."""
    with token_progress(total) as advance:
        for event in events:
            advance(1)
            yield event


def _exhaust(events: Iterator[Event]) -> bool:
    """Run to the end; True if Ctrl-C came first."""
    try:
        for _ in events:
            pass
    except KeyboardInterrupt:
        return True
    return False


def _stream(events: Iterator[Event], output: Output, prompt: str) -> bool:
    """Show the text as it comes; True if Ctrl-C came first."""
    try:
        output.write_given(prompt)
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


def _print_json(
    prompt: str,
    config: GenerationConfig,
    facts: dict[str, Any],
    recorder: Recorder,
    chances: dict[str, dict[str, Any]],
    output: Output,
) -> None:
    """An object a sample, with all that is needed to run it again."""
    for i, sample in enumerate(recorder.samples):
        record = {"prompt": prompt, "sample": i, **asdict(sample), **facts}
        if config.logprobs is None:
            del record["logprobs"]
        if config.constraint is None:
            del record["matched"]
        elif config.constraint.kind == "choice":
            record["choice"] = chances.get(sample.text)
        output.write(json.dumps(record, ensure_ascii=False) + "\n")


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
        "min_tokens": config.min_tokens,
        # JSON has no −∞.
        "bias": {str(i): b if isfinite(b) else str(b) for i, b in config.bias.items()},
        "dry_breakers": list(config.dry_breakers),
        "beams": config.beams,
        "length_penalty": config.length_penalty,
        "constraint": {c.kind: c.source} if (c := config.constraint) else None,
        "overflow": overflow,
        "timings": {
            "load_s": load_seconds,
            "time_to_first_token_s": recorder.time_to_first_token,
            "tokens_per_second": recorder.tokens_per_second,
        },
    }


def _summary(what: str, facts: dict[str, Any], recorder: Recorder) -> str:
    """What ran, and how fast."""
    first, speed = recorder.time_to_first_token, recorder.tokens_per_second
    parts = [
        what,
        f"loaded in {facts['timings']['load_s']:.2f} s",
        f"first token after {first:.3f} s" if first is not None else "no token",
        f"{recorder.tokens} tokens",
        f"{speed:.1f} tokens/s" if speed else "",
    ]
    if (draft := facts["draft"]) and draft["passes"]:
        rate = draft["acceptance_rate"]
        parts.append(
            f"{draft['accepted']} of {draft['proposed']} tokens of draft {draft['name']} accepted"
            + (f" ({rate:.0%})" if rate is not None else "")
        )
        parts.append(f"{draft['tokens_per_pass']:.1f} tokens a pass")
    return ", ".join(part for part in parts if part)
