"""Measure gpt2cli beside transformers, CTranslate2 and llama.cpp, with the same random weights.

    python benchmarks/peers.py [--rounds 3] [--quick] [--size 124M] [--only int8,int4,Q8_0,Q4_0]
                               [--level avx2] [--baseline ANOTHER_CHECKOUT]

Needs `pip install -e '.[dev]'`, and for the peers `pip install ctranslate2 llama-cpp-python gguf`
(llama-cpp-python compiled on this machine, which is what `--no-binary llama-cpp-python` asks of
pip, uses its instruction sets). A peer that is not installed is left out.

Every program runs in a process of its own with as many threads as there are cores. They take
turns: one computes, the others wait, and a pause lets threads that spin fall asleep. Each round
measures everything once, in the order of the round before turned around; the peers at 900 tokens
only in the first. Medians are printed, and the ratios to aim for, as medians of each round's,
with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aims import (
    CHECKED,
    COLD,
    COMMANDS,
    DECODED,
    FAR,
    NEAR,
    PREFILL,
    WINDOW,
    Times,
    aim_table,
    baseline_table,
    program_table,
)
from convert import prepare
from entries import ENTRIES, HERE, THREADS, Entry, select
from rich.console import Console
from workers import Died, Worker, others

QUIET = 10  # percent
PROMPT = "ROMEO: But soft"
SIZES = ("124M", "355M", "774M", "1558M")

console = Console(stderr=True)


def start(entries: Sequence[Entry], directory: Path) -> dict[str, Worker]:
    """The workers by name, each of which has read a prompt and decoded, and so is warm."""
    workers = {}
    for entry in entries:
        with console.status(f"loading {entry.name}"):
            try:
                workers[entry.name] = warm_worker(entry, directory)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                reason = (getattr(error, "stderr", None) or b"").decode() or str(error)
                console.print(f"{entry.name} is left out: {reason.strip()}", markup=False)
    return workers


def warm_worker(entry: Entry, directory: Path) -> Worker:
    """A worker; one of llama.cpp that dies is started again without repacking its weights."""
    if entry.is_ours:
        cold_start(entry, directory)  # quantises, as the peers' files are
    try:
        worker = Worker(entry, directory)
        worker.ask("prefill", list(range(PREFILL)))
        worker.ask("decode", list(range(1000, 1032)), CHECKED)
    except Died:
        if entry.program != "llama.cpp" or not entry.repack:
            raise
        return warm_worker(replace(entry, repack=False), directory)
    return worker


def cold_start(entry: Entry, directory: Path) -> None:
    """A process from its command to its first token."""
    command = entry.cold_command(directory, PROMPT)
    run(*command, cwd=entry.checkout, env=entry.environment(directory))


def run(*command: str, cwd: Path = HERE, env: dict[str, str] | None = None) -> None:
    """Run a process to its end, discarding its output."""
    subprocess.run(
        command, check=True, capture_output=True, stdin=subprocess.DEVNULL, cwd=cwd, env=env
    )


def seconds(action: Callable[..., object], *arguments: object) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def measure(workers: dict[str, Worker], directory: Path, rounds: int, decoded: int) -> Times:
    """Measure everything once per round and program; one that fails is taken from `workers`."""
    times: Times = defaultdict(list)
    order = list(workers)
    for turn in range(rounds):
        where = f"round {turn + 1} of {rounds}"
        measure_speeds(workers, order, times, decoded, where, first=turn == 0)
        order = [name for name in order if name in workers]
        for name in order:
            with console.status(f"{where}: {COLD}, {name}"):
                times[COLD, name].append(seconds(cold_start, workers[name].entry, directory))
        for what, (arguments, _) in COMMANDS.items():
            command = (sys.executable, "-m", "gpt2cli", *arguments)
            times[what, ""].append(seconds(run, *command))
        order.reverse()
    kept = {key: spent for key, spent in times.items() if key[1] in workers or not key[1]}
    return defaultdict(list, kept)


def measure_speeds(
    workers: dict[str, Worker],
    order: Sequence[str],
    times: Times,
    decoded: int,
    where: str,
    *,
    first: bool,
) -> None:
    """One round of decoding and reading, by every program in turn."""
    ids = random.Random(0).choices(range(50000), k=1024)
    requests = {
        "decode": (decoded, ("decode", ids[:32], decoded)),
        NEAR: (WINDOW, ("decode", ids[: 50 - WINDOW // 2], WINDOW)),
        FAR: (WINDOW, ("decode", ids[: 900 - WINDOW // 2], WINDOW)),
        "prefill": (PREFILL, ("prefill", ids[:PREFILL])),
    }
    for what, (amount, request) in requests.items():
        for name in (name for name in order if name in workers):
            if not workers[name].entry.is_ours and (what == NEAR or (what == FAR and not first)):
                continue  # no aim depends on it, and some read the long prompt twice
            try:
                with console.status(f"{where}: {what}, {name}"):
                    answer = workers[name].ask(*request)
            except RuntimeError as error:
                console.print(f"{name} failed at {what}: {error}", markup=False)
                workers.pop(name).close()
                continue
            spent = answer[0] if isinstance(answer, tuple) else answer
            times[what, name].append(spent / amount)


def agreement(workers: dict[str, Worker]) -> dict[str, int]:
    """Of the first greedy tokens after a prompt, how many are those of ours; fp32 programs only.

    With fewer bits random weights give other tokens, which says nothing about the conversion.
    """
    prompt = random.Random(2).choices(range(50000), k=32)
    tokens = {
        name: worker.ask("decode", prompt, CHECKED - 1)[1]
        for name, worker in workers.items()
        if worker.entry.precision in ("fp32", "F32")
    }
    ours = tokens.get("gpt2cli fp32")
    if ours is None:
        return {}
    return {
        name: sum(a == b for a, b in zip(theirs, ours, strict=False))
        for name, theirs in tokens.items()
    }


def machine() -> str:
    """The machine and versions, as text."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found = []
    packages = ("numpy", "torch", "transformers", "ctranslate2", "llama-cpp-python")
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return (
        f"{models[0] if models else platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {THREADS} threads each, {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(found)}"
    )


def parse() -> argparse.Namespace:
    """The options, with the entries to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, few tokens: does it work?")
    parser.add_argument("--size", choices=SIZES, default="124M", help="of the random weights")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="programs, precisions or both, with commas: int8,Q8_0 or llama.cpp or 'gpt2cli fp32'",
    )
    parser.add_argument(
        "--level", default="", help="hold our engine down to these instructions; peers choose"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="PATH", help="another checkout of gpt2cli, built in place"
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        chosen = select(*options.only.split(",")) if options.only else list(ENTRIES)
    except ValueError as error:
        parser.error(str(error))
    options.entries = []
    for entry in chosen:
        if not entry.is_ours:
            options.entries.append(entry)
            continue
        options.entries.append(replace(entry, level=options.level))
        if options.baseline:
            if not (options.baseline / "gpt2cli").is_dir():
                parser.error(f"{options.baseline} is no checkout of gpt2cli")
            before = replace(entry, level=options.level, checkout=options.baseline.resolve())
            options.entries.append(before)
    return options


def main() -> None:
    """Measure and print the tables."""
    options = parse()
    rounds, decoded = (1, 40) if options.quick else (options.rounds, DECODED)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed programs start from bytecode
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the directory goes, too
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with console.status("writing the weights"):
            entries = prepare(directory, options.entries, options.size)
        workers = start(entries, directory)
        try:
            same = agreement(workers)
            times = measure(workers, directory, rounds, decoded)
            memory = {name: worker.ask("memory") for name, worker in workers.items()}
            measured = [worker.entry for worker in workers.values()]
        finally:
            for worker in workers.values():
                worker.close()
    level = f", ours held down to {options.level}" if options.level else ""
    out = Console(width=max(console.width, 120))
    out.print(program_table(f"{options.size}, batch 1{level}", measured, times, same, memory))
    if not all(entry.repack for entry in measured):
        out.print("not repacked: with use_extra_bufts, as by default, it died here")
    for table in (
        aim_table(times, memory, options.size),
        baseline_table(measured, times) if options.baseline else None,
    ):
        if table and table.row_count:
            out.print()
            out.print(table)
    out.print()
    print(
        f"{machine()}; medians of {rounds} round{'s' if rounds > 1 else ''}; between the turns "
        f"other processes kept the cores {statistics.mean(others):.0f}% busy"
    )
    if statistics.mean(others) > QUIET:
        console.print("The machine was not idle, so these figures mean little; run it again.")


if __name__ == "__main__":
    main()
