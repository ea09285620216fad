"""Measure many texts at once: our batches beside one text, static batches and other programs.

    python benchmarks/batch.py [--rounds 5] [--parts core peers static bulk gap shared memory ray]
    python benchmarks/batch.py --precisions int8 --baseline ANOTHER_CHECKOUT

124M with random weights and OpenAI's sizes, 2 threads a program or as many as there are cores. What
is compared takes turns within a round; medians over the rounds are printed, and the ratio is the
median of each round's. Needs `pip install -e '.[dev]'`, and for the peers what peers.py needs; one
that is not installed is left out. Lengths are skewed: exponentially distributed, always the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from convert import prepare
from entries import CHECKPOINT, OURS, Entry, select

from gpt2cli.config.sampling import USUAL, SamplingConfig
from gpt2cli.decoders import opening
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.scheduler import Scheduler
from gpt2cli.system.device import Placement
from gpt2cli.text.tokenizer import Tokenizer

GREEDY = SamplingConfig(temperature=0)
PRECISIONS = ("fp32", "int8")
PEERS = {
    "fp32": ["transformers fp32", "CTranslate2 fp32", "llama.cpp F32"],
    "int8": ["CTranslate2 int8", "llama.cpp Q8_0"],
}
SIZE = 50257


def skewed(count: int, mean: int, least: int, most: int, seed: int) -> list[int]:
    """Lengths as those of real texts: many short ones, few long ones."""
    drawn = np.random.default_rng(seed).exponential(mean, count)
    return [int(n) for n in np.clip(drawn, least, most)]


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng([9, seed]).integers(0, 50_000, length).tolist()


def workload(count: int, new: int = 50) -> list[tuple[list[int], int]]:
    lengths = zip(skewed(count, 40, 4, 200, 1), skewed(count, new, 1, 8 * new, 2), strict=True)
    return [(prompt(length, i), n) for i, (length, n) in enumerate(lengths)]


class Bench:
    """What the parts share: files, decoders, rounds."""

    def __init__(self, directory: Path, rounds: int, precisions: list[str]) -> None:
        self.directory, self.rounds, self.precisions = directory, rounds, precisions
        self.tokenizer = Tokenizer.load(directory / CHECKPOINT)
        self._decoders: dict[str, Decoder] = {}

    def decoder(self, precision: str) -> Decoder:
        """With room for 64 whole contexts."""
        if precision not in self._decoders:
            self._decoders[precision] = opening.open_decoder(
                self.directory / CHECKPOINT,
                Placement("cpu", precision),
                64 * 1024,
                size=self.tokenizer.size,
            )
        return self._decoders[precision]

    def scheduler(self, precision: str, **limits: int) -> Scheduler:
        return Scheduler(self.decoder(precision), self.tokenizer, **limits)

    def alternate(
        self, actions: dict[str, Callable[[], float]], once: str = ""
    ) -> dict[str, list[float]]:
        """Each action's figure in every round; the order turns around from round to round.

        What begins with `once` is so slow that its first figure stands for all.
        """
        found: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(self.rounds):
            for name in list(actions)[:: 1 if number % 2 == 0 else -1]:
                first = found[name][:1] if once and name.startswith(once) else []
                found[name].append(first[0] if first else actions[name]())
                time.sleep(0.2)
        return found


def show(name: str, found: list[float], over: list[float] | None = None, aim: str = "") -> None:
    line = f"{name:<58} {statistics.median(found):10,.2f}"
    if over is not None:
        ratio = statistics.median(a / b for a, b in zip(found, over, strict=True))
        line += f"   ratio {ratio:6.2f}" + (f"   asked {aim}" if aim else "")
    print(line, flush=True)


def decode_rate(bench: Bench, precision: str, count: int, sampling: SamplingConfig) -> float:
    """Tokens per second of `count` texts of different lengths, once all have been read."""
    scheduler = bench.scheduler(precision)
    steps = 48 if count == 1 else 16
    for i, length in enumerate(skewed(count, 40, 8, 120, 3)):
        config = GenerationConfig(sampling, max_tokens=400, ignore_eos=True, seed=i)
        scheduler.add(prompt(length, i), config)
    while len(scheduler.step()) < count:
        pass
    started = time.perf_counter()
    tokens = sum(len(scheduler.step()) for _ in range(steps))
    took = time.perf_counter() - started
    for request in range(1, count + 1):
        scheduler.cancel(request)
    return tokens / took


def core(bench: Bench) -> None:
    """Decoding 16 and 64 texts beside one."""
    for precision, aims in (("int8", ("5.5", "8")), ("fp32", ("6", "9")), ("int4", ("", ""))):
        for label, sampling in (("greedy", GREEDY), ("the usual sampling", USUAL)):
            found = bench.alternate(
                {
                    str(count): (
                        lambda c=count: decode_rate(bench, precision, c, sampling)  # noqa: B023
                    )
                    for count in (1, 16, 64)
                }
            )
            show(f"{precision} decode, 1 text, {label}, tokens/s", found["1"])
            for count, aim in zip(("16", "64"), aims, strict=True):
                show(f"{precision} decode, {count} texts, {label}", found[count], found["1"], aim)


def run(scheduler: Scheduler, work: list[tuple[list[int], int]]) -> None:
    for ids, new in work:
        scheduler.add(ids, GenerationConfig(GREEDY, max_tokens=new, ignore_eos=True))
    while scheduler.busy:
        scheduler.step()


def static(bench: Bench) -> None:
    """256 prompts, of which ended ones make room, beside batches of 64 that wait for all."""
    work = workload(256, 20)
    tokens = sum(new for _, new in work)

    def timed(batches: list[list[tuple[list[int], int]]], longest: bool) -> float:
        started = time.perf_counter()
        for batch in batches:
            most = max(new for _, new in batch)
            run(bench.scheduler(precision), [(ids, most if longest else n) for ids, n in batch])
        return tokens / (time.perf_counter() - started)

    for precision in ("int8",):
        found = bench.alternate(
            {
                "continuous": lambda: timed([work], False),
                "static": lambda: timed([work[i : i + 64] for i in range(0, 256, 64)], True),
            }
        )
        show(f"{precision}, static batches of 64, tokens/s wanted", found["static"])
        show(f"{precision}, continuous batching", found["continuous"], found["static"], "2")


def seconds(*command: str, **options: Any) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
    return time.perf_counter() - started


def rate(tokens: int, command: list[str]) -> float:
    """Tokens per second of a whole process; 0 if it dies."""
    try:
        return tokens / seconds(*command, stderr=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(command[2:4])} ended with {error.returncode}", file=sys.stderr)
        return 0.0


def write_rows(path: Path, work: list[tuple[list[int], int]]) -> Path:
    lines = (json.dumps({"prompt": ids, "max_tokens": new}) for ids, new in work)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def bulk_command(bench: Bench, rows: Path, precision: str, *more: str) -> list[str]:
    output = rows.with_suffix(".out.jsonl")
    model = ("-m", str(bench.directory / CHECKPOINT), "--device", "cpu", "--precision", precision)
    choice = ("-t", "0", "--ignore-eos", "--seed", "1")
    command = (sys.executable, "-m", "gpt2cli", "bulk", str(rows), "-o", str(output))
    return [*command, *model, *choice, "--overwrite", *more]


def peers(bench: Bench, entries: list[Entry]) -> None:
    """64 prompts of skewed lengths, whole processes. What dies once is run as plainly as it can."""
    work = workload(64, 30)
    tokens = sum(new for _, new in work)
    rows = write_rows(bench.directory / "peers.jsonl", work)
    file = bench.directory / "peers.json"
    file.write_text(json.dumps(work))
    script = str(Path(__file__).with_name("batch_programs.py"))
    for precision in bench.precisions:
        own = bulk_command(bench, rows, precision)
        commands = {f"gpt2 bulk {precision}": own}
        for entry in select(*PEERS[precision]):
            if entry not in entries:
                continue
            command = [sys.executable, script, entry.program, entry.precision]
            command += [str(bench.directory), str(file)]
            if entry.program == "llama.cpp" and not rate(tokens, command):
                entry, command = replace(entry, repack=False), [*command, "plain"]
            commands[entry.label] = command
        found = bench.alternate(
            {name: (lambda c=command: rate(tokens, c)) for name, command in commands.items()},
            once="transformers",
        )
        for name, figures in found.items():
            show(f"{name}, 64 prompts, whole processes, tokens/s", figures)
        others = [figures for name, figures in found.items() if not name.startswith("gpt2")]
        if others:
            best = [max(figures) for figures in zip(*others, strict=True)]
            aim = {"int8": "2.5", "fp32": "1.5"}[precision]
            show(
                f"{precision}, ours beside the best peer",
                found[f"gpt2 bulk {precision}"],
                best,
                aim,
            )


def bulk(bench: Bench) -> None:
    """The command beside its own core, and beside a shell loop."""
    work = workload(384, 40)
    tokens = sum(new for _, new in work)
    rows = write_rows(bench.directory / "bulk.jsonl", work)

    def by_core() -> float:
        started = time.perf_counter()
        run(bench.scheduler("int8"), work)
        return tokens / (time.perf_counter() - started)

    def by_command() -> float:
        command = bulk_command(bench, rows, "int8", "--json")
        done = subprocess.run(command, check=True, capture_output=True)
        return float(json.loads(done.stdout)["tokens_per_second"])

    found = bench.alternate({"core": by_core, "bulk": by_command})
    show("int8, 384 rows by the core, tokens/s", found["core"])
    show("int8, gpt2 bulk beside its core", found["bulk"], found["core"], "0.95")
    few = workload(48, 40)
    rows = write_rows(bench.directory / "few.jsonl", few)
    model = ("-m", str(bench.directory / CHECKPOINT), "--precision", "int8", "--device", "cpu")

    def loop() -> float:
        took = 0.0
        for ids, new in few:
            text = bench.tokenizer.decode(ids).replace("\0", " ")
            options = ("-n", str(new), "-t", "0", "--ignore-eos", *model)
            command = (sys.executable, "-m", "gpt2cli", "generate", *options, "--", text)
            took += seconds(*command, stdin=subprocess.DEVNULL)
        return sum(new for _, new in few) / took

    def whole() -> float:
        return sum(new for _, new in few) / seconds(*bulk_command(bench, rows, "int8"))

    found = bench.alternate({"loop": loop, "bulk": whole})
    show("int8, 48 rows by a loop of gpt2 generate, tokens/s", found["loop"])
    show("int8, gpt2 bulk beside the loop, whole processes", found["bulk"], found["loop"], "6")


def gap(bench: Bench) -> None:
    """The longest wait in 15 streams while a prompt of 900 tokens comes in."""
    for precision in PRECISIONS:

        def worst() -> float:
            scheduler = bench.scheduler(precision)  # noqa: B023
            config = GenerationConfig(GREEDY, max_tokens=300, ignore_eos=True)
            for i in range(15):
                scheduler.add(prompt(30, i), config)
            while len(scheduler.step()) < 15:
                pass
            before = [step(scheduler) for _ in range(20)]
            scheduler.add(prompt(900, 99), config)
            during = [step(scheduler) for _ in range(40)]
            for request in range(1, 17):
                scheduler.cancel(request)
            return max(during) / statistics.median(before)

        found = [worst() for _ in range(bench.rounds)]
        show(f"{precision}, longest ÷ median gap of 15 streams (asked: at most 5)", found)


def step(scheduler: Scheduler) -> float:
    started = time.perf_counter()
    scheduler.step()
    return time.perf_counter() - started


def shared(bench: Bench) -> None:
    """Four prompts that share 700 tokens beside one of them."""
    beginning = prompt(700, 0)

    def first_tokens(count: int) -> float:
        decoder = opening.open_decoder(
            bench.directory / CHECKPOINT, Placement("cpu", "int8"), 8 * 1024, size=SIZE
        )
        decoder.read([Chunk(decoder.open(), 0, prompt(64, 5))])  # the first touch of its memory
        scheduler = Scheduler(decoder, bench.tokenizer)
        config = GenerationConfig(GREEDY, max_tokens=1, ignore_eos=True)
        for i in range(count):
            scheduler.add([*beginning, *prompt(20, i + 1)], config)
        started = time.perf_counter()
        while scheduler.busy:
            scheduler.step()
        return time.perf_counter() - started

    found = bench.alternate({"one": lambda: first_tokens(1), "four": lambda: first_tokens(4)})
    show("int8, one prompt of 720 tokens, s", found["one"])
    show("int8, four that share 700 (asked: at most 1.4)", found["four"], found["one"], "1.4")


def memory(bench: Bench) -> None:
    """Peak memory of a long run beside a short one, with a model of three layers."""
    peaks = {}
    for count in (1_000, 100_000):
        rows = bench.directory / f"{count}.jsonl"
        with rows.open("w") as file:
            file.writelines('{"prompt": "ROMEO:", "max_tokens": 1}\n' for _ in range(count))
        output = rows.with_suffix(".out.jsonl")
        command = (sys.executable, "-m", "gpt2cli", "bulk", str(rows), "-o", str(output))
        process = psutil.Popen([*command, "-m", "bard", "--device", "cpu", "--seed", "1"])
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.05)
        peaks[count] = peak / 1e6
    show("bard, peak RSS of 1,000 rows, MB", [peaks[1_000]])
    show("bard, peak RSS of 100,000 rows (asked: at most 50 more)", [peaks[100_000]])


def ray(bench: Bench) -> None:
    """One worker on Ray beside the command, without the start of either."""
    work = workload(384, 40)
    rows = write_rows(bench.directory / "ray.jsonl", work)

    def speed(*more: str) -> float:
        command = bulk_command(bench, rows, "int8", "--json", *more)
        done = subprocess.run(command, check=True, capture_output=True)
        return float(json.loads(done.stdout)["tokens_per_second"])

    found = bench.alternate({"bulk": speed, "ray": lambda: speed("--ray", "local")})
    show("int8, gpt2 bulk, 384 rows, tokens/s", found["bulk"])
    show("int8, gpt2 bulk --ray local, one worker", found["ray"], found["bulk"], "0.85")


def beside_baseline(bench: Bench, checkout: Path) -> None:
    """Decoding 64 texts and one by this checkout and by another, each a process of its own."""
    script = str(Path(__file__).with_name("batch_rate.py"))

    def speed(entry: Entry, count: int) -> float:
        command = [sys.executable, script, str(bench.directory), entry.precision, str(count)]
        environment = entry.environment(bench.directory)
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        return float(done.stdout)

    for precision in bench.precisions:
        ours = Entry(OURS, precision)
        before = replace(ours, checkout=checkout)
        for count in (1, 64):
            found = bench.alternate(
                {
                    entry.name: (lambda e=entry: speed(e, count))  # noqa: B023
                    for entry in (ours, before)
                }
            )
            show(f"{before.name}, decode, {count} texts, tokens/s", found[before.name])
            show(f"{ours.name}, decode", found[ours.name], found[before.name])


PARTS = ("core", "static", "gap", "shared", "bulk", "peers", "memory", "ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--baseline", type=Path, help="measure only this: another checkout, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = str(Path(folder) / "hub")
        measured = "peers" in options.parts and not options.baseline
        wanted = [name for p in options.precisions for name in PEERS[p]] if measured else []
        entries = prepare(Path(folder), select(*wanted))
        bench = Bench(Path(folder), options.rounds, options.precisions)
        if options.baseline:
            beside_baseline(bench, options.baseline.resolve())
            return
        for part in options.parts:
            if part == "peers":
                peers(bench, entries)
            else:
                globals()[part](bench)


if __name__ == "__main__":
    main()
