"""Views of a generation: streamed, numbered, as JSON, and a line of statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.progress import token_progress
from gpt2cli.cli.io.terminal import Output

if TYPE_CHECKING:
    from gpt2cli.generation.record import Recorder
    from gpt2cli.generation.request import Event, GenerationConfig


def exhaust(events: Iterator[Event], config: GenerationConfig) -> bool:
    """Run to the end, with a bar if tokens come one by one; True if Ctrl-C came first."""
    total = config.samples * config.max_tokens if config.beams is None else 0
    try:
        with token_progress(total) if total else nullcontext() as advance:
            for _ in events:
                if advance is not None:
                    advance(1)
    except KeyboardInterrupt:
        return True
    return False


def stream(events: Iterator[Event], output: Output, prompt: str) -> bool:
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


def print_samples(texts: list[str], output: Output) -> None:
    """One text as it is; several each under a line that numbers it."""
    for i, text in enumerate(texts, start=1):
        if len(texts) > 1:
            output.write(f"--- {i}/{len(texts)} ---\n")
        output.write(text)
        if len(texts) > 1 or output.terminal:
            output.end_line()


def print_json(
    prompt: str,
    config: GenerationConfig,
    facts: dict[str, Any],
    recorder: Recorder,
    chances: dict[str, dict[str, Any]],
    output: Output,
) -> None:
    """An object per sample, with all that is needed to run it again."""
    for i, sample in enumerate(recorder.samples):
        record = {"prompt": prompt, "sample": i, **asdict(sample), **facts}
        del record["count"]
        if config.logprobs is None:
            del record["logprobs"], record["end_logprob"]
        else:
            end = sample.end_logprob
            record["logprobs"] = [one.as_dict() for one in sample.logprobs]
            record["end_logprob"] = end and end.as_dict()
        if config.constraint is None:
            del record["matched"]
        elif config.constraint.kind == "choice":
            record["choice"] = chances.get(sample.text)
        output.write(json.dumps(record, ensure_ascii=False) + "\n")


def summary(what: str, facts: dict[str, Any], recorder: Recorder) -> str:
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
        parts.append(f"{draft['tokens_per_pass']:.1f} tokens per pass")
    return ", ".join(part for part in parts if part)
