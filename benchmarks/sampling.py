"""What it costs to choose the tokens of one step.

    python benchmarks/sampling.py [--rounds 30]

Logits of a step are random and in GPT-2's vocabulary: flat as of random weights, or with some
tokens far above the others as of a trained model. A step's cost is the median of the rounds, in
time and in time of all processors, which a busy machine disturbs less. A constraint's is that of
a token in one text, with its grammar: to append the last one, to see whether the text must end,
to find what may come next and to choose.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from parity import byte_tokenizer
from rich.console import Console
from rich.table import Table

import gpt2cli
from gpt2cli.arrays import NDArray
from gpt2cli.config.sampling import USUAL, SamplingConfig
from gpt2cli.sampling import constraint
from gpt2cli.sampling.rules import generator
from gpt2cli.sampling.sampler import Sampler, choose
from gpt2cli.text.tokenizer import Tokenizer

SIZE = 50_257
SCHEMA = """{"type": "object", "required": ["name", "age", "tags"], "properties": {
"name": {"type": "string"}, "age": {"type": "integer"},
"tags": {"type": "array", "items": {"type": "string"}}}}"""
SETTINGS = {
    "temperature 0.8, top-p 0.95": USUAL,
    "greedy": SamplingConfig(temperature=0),
    "temperature 0.8": SamplingConfig(temperature=0.8),
    "top-k 40": SamplingConfig(temperature=0.8, top_k=40),
    "top-p 0.95, min-p 0.05": SamplingConfig(temperature=0.8, top_p=0.95, min_p=0.05),
}


def logits_of(count: int, spread: float, peaked: bool) -> NDArray:
    """(count, V)"""
    random = np.random.default_rng(0)
    logits = (random.normal(size=(count, SIZE)) * spread).astype(np.float32)
    if peaked:
        logits[:, random.permutation(SIZE)[:200]] += np.linspace(14, 2, 200, dtype=np.float32)
    return logits


def medians(step: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Milliseconds of a step, and of all processors."""
    times = []
    for _ in range(rounds + 2):
        started, processor = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - started, time.process_time() - processor))
    wall, processors = zip(*times[2:], strict=True)
    return 1e3 * statistics.median(wall), 1e3 * statistics.median(processors)


def steps(rounds: int) -> Table:
    """The cost of a step of 1, 16 and 64 texts."""
    kinds = {
        "flat, 0.5": logits_of(64, 0.5, False),
        "flat, 3": logits_of(64, 3.0, False),
        "peaked": logits_of(64, 2.0, True),
    }
    table = Table("settings", "logits", "texts", "ms", "processors' ms", "µs per text")
    for name, config in SETTINGS.items():
        for kind, logits in kinds.items():
            for count in (1, 16, 64):
                samplers = [Sampler(config, generator(0, i)) for i in range(count)]
                texts = [[0]] * count
                wall, processors = medians(
                    lambda rows=logits[:count], s=samplers, t=texts: choose(rows, s, t), rounds
                )
                each = 1e3 * processors / count
                table.add_row(
                    name, kind, str(count), f"{wall:.2f}", f"{processors:.2f}", f"{each:.0f}"
                )
    return table


def constrained(tokenizer: Tokenizer, what: constraint.Constraint | None, tokens: int) -> float:
    """Microseconds per token of a text that must match, greedy over random logits."""
    random, end = np.random.default_rng(0), tokenizer.end_of_text
    times: list[float] = []
    while len(times) < tokens:
        matcher = None if what is None else what.matcher(tokenizer)
        sampler, text = Sampler(USUAL, generator(len(times), 0), matcher=matcher), [0]
        for _ in range(60):
            logits = random.normal(size=(1, tokenizer.size)).astype(np.float32)
            started = time.perf_counter()
            token = sampler.choose(logits, text)
            text.append(token)
            if matcher is not None:
                matcher.push(token)
                over = matcher.must_end()
            times.append(1e6 * (time.perf_counter() - started))
            if matcher is not None and (over or token == end):
                break
    return statistics.median(times)


def constraints(tokens: int) -> Table:
    """The cost of each kind of constraint, beside that of none."""
    with tempfile.TemporaryDirectory() as directory:
        schema = Path(directory) / "schema.json"
        schema.write_text(SCHEMA)
        kinds = {
            "none": None,
            r"regex \[a-z ]{200}": constraint.resolve(regex="[a-z ]{200}"),
            r"regex (.|\n){200}": constraint.resolve(regex=r"(.|\n){200}"),
            "JSON schema": constraint.resolve(json_schema=schema),
        }
    table = Table("constraint", "bard, µs per token", "50,257 tokens, µs per token")
    for name, kind in kinds.items():
        sizes = (gpt2cli.load("bard").tokenizer, byte_tokenizer(SIZE))
        table.add_row(name, *(f"{constrained(t, kind, tokens):.0f}" for t in sizes))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    console = Console(width=100)
    console.print(steps(arguments.rounds))
    console.print(constraints(10 * arguments.rounds))


if __name__ == "__main__":
    main()
