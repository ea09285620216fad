"""Measure gpt2cli beside transformers, CTranslate2 and llama.cpp, with the same random weights.

    python benchmarks/peers.py [--rounds 3] [--quick]

Needs `pip install -e '.[dev]'`, and for the peers `pip install ctranslate2 llama-cpp-python gguf`
(llama-cpp-python compiled on this machine, which is what `--no-binary llama-cpp-python` asks of
pip, uses its instruction sets). A peer that is not installed is left out.

Every program runs in a process of its own with as many threads as there are cores. They take
turns: one computes, the others wait, and a pause lets threads that spin fall asleep. Each round
measures everything once, in the order of the round before turned around; the peers at 900 tokens
only in the first. Medians are printed, and the ratios to aim for, as medians of each round's.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
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
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from programs import CHECKPOINT, ENTRIES, THREADS, Entry, serve
from rich.console import Console
from rich.table import Table

PAUSE = 0.25  # seconds; OpenMP's threads spin for up to 0.2 after their work
LOOK = 0.1  # seconds after the pause, in which only others can be computing
QUIET = 10  # percent
PATIENCE = 300  # seconds for one answer
PROMPT = "ROMEO: But soft"
DECODED, PREFILL, CHECKED = 200, 512, 20
WINDOW = 60  # tokens decoded around a length of context
NEAR, FAR = "decode at 50", "decode at 900"
COMMANDS = {"gpt2 --help": ("--help",), "gpt2 info": ("info",)}

Times = dict[tuple[str, str], list[float]]  # of (what, whom): seconds, one per round

console = Console(stderr=True)
others: list[float] = []  # percent of the cores that other processes used, after each turn


class Worker:
    """A program in its own process."""

    def __init__(self, entry: Entry, directory: Path) -> None:
        self.entry = entry
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(entry, directory, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.receive()

    def ask(self, *request: object) -> object:
        """One answer, then the pause. Raises `RuntimeError` with what the program said."""
        self.pipe.send(request)
        answer = self.receive()
        time.sleep(PAUSE)
        others.append(psutil.cpu_percent(LOOK))
        return answer

    def receive(self) -> object:
        if not self.pipe.poll(PATIENCE):
            raise RuntimeError(f"no answer in {PATIENCE} s")
        try:
            fine, answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("its process died") from None
        if not fine:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self.pipe.close()
        self.process.join(2)
        self.process.kill()


def write_checkpoint(directory: Path) -> None:
    """Random weights in which a mistake of conversion shows.

    Weights as GPT-2 initialises them have no biases, and repeat one token for ever.
    """
    import torch
    from compare import write_model

    with torch.no_grad():
        model = write_model(directory)
        for parameter in model.transformer.h.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(directory)


def prepare(directory: Path) -> list[Entry]:
    """Write every program's files; those that can be measured."""
    (directory / CHECKPOINT).mkdir()
    apart = multiprocessing.get_context("spawn").Process(  # its memory and threads go with it
        target=write_checkpoint, args=(directory / CHECKPOINT,)
    )
    apart.start()
    apart.join()
    if apart.exitcode:
        raise SystemExit("the checkpoint could not be written")

    refused: dict[str, str] = {}
    converter = str(Path(__file__).with_name("convert.py"))
    for entry in ENTRIES:
        missing = [name for name in entry.needs if importlib.util.find_spec(name) is None]
        if entry.program in refused:
            continue
        if missing:
            refused[entry.program] = f"{' and '.join(missing)} not installed"
        elif (
            entry.program in ("CTranslate2", "llama.cpp")
            and not (directory / f"done {entry.program}").exists()
        ):
            command = [sys.executable, converter, str(directory), entry.program]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            (directory / f"done {entry.program}").touch()
            if done.returncode:
                refused[entry.program] = (done.stderr.splitlines() or ["no message"])[-1]
    for program, reason in refused.items():
        console.print(f"{program} is left out: {reason}", markup=False)
    return [entry for entry in ENTRIES if entry.program not in refused]


def start(entries: list[Entry], directory: Path, prompt: list[int]) -> dict[str, Worker]:
    """The workers by name, each of which has decoded a few tokens and so is warm."""
    workers = {}
    for entry in entries:
        try:
            if not entry.cold:
                run(*entry.cold_command(directory, PROMPT))  # quantises, as the peers' files are
            worker = Worker(entry, directory)
            worker.ask("decode", prompt, CHECKED)
            workers[entry.name] = worker
        except (RuntimeError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", b"").decode() or str(error)
            console.print(f"{entry.name} is left out: {reason.strip()}", markup=False)
    return workers


def run(*command: str) -> None:
    """Run a process to its end, discarding its output."""
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(workers: dict[str, Worker], directory: Path, rounds: int, decoded: int) -> Times:
    """Measure everything once per round and program."""
    ids = random.Random(0).choices(range(50000), k=1024)
    half = WINDOW // 2
    requests = {
        "decode": ("decode", ids[:32], decoded),
        NEAR: ("decode", ids[: 50 - half], WINDOW),
        FAR: ("decode", ids[: 900 - half], WINDOW),
        "prefill": ("prefill", ids[:PREFILL]),
    }
    times: Times = defaultdict(list)
    names = list(workers)
    for turn in range(rounds):
        for what, request in requests.items():
            for name in names:
                peer = not name.startswith("gpt2cli")
                if peer and (what == NEAR or (what == FAR and turn)):
                    continue  # no aim depends on it, and some read the long prompt twice
                if name not in workers:
                    continue
                try:
                    with console.status(f"round {turn + 1} of {rounds}: {what}, {name}"):
                        answer = workers[name].ask(*request)
                except RuntimeError as error:
                    console.print(f"{name} failed at {what}: {error}", markup=False)
                    workers.pop(name).close()
                    continue
                times[what, name].append(answer[0] if isinstance(answer, tuple) else answer)
        names = [name for name in names if name in workers]
        for name in names:
            command = workers[name].entry.cold_command(directory, PROMPT)
            with console.status(f"round {turn + 1} of {rounds}: cold start, {name}"):
                times["cold start", name].append(seconds(lambda: run(*command)))  # noqa: B023
        for what, arguments in COMMANDS.items():
            command = [sys.executable, "-m", "gpt2cli", *arguments]
            times[what, ""].append(seconds(lambda: run(*command)))  # noqa: B023
        names.reverse()
    return defaultdict(
        list, {key: spent for key, spent in times.items() if key[1] in workers or not key[1]}
    )


def agreement(workers: dict[str, Worker]) -> dict[str, int]:
    """Of the first greedy tokens after a prompt, how many are those of ours; fp32 programs only.

    With fewer bits random weights give other tokens, which says nothing about the conversion.
    """
    prompt = random.Random(1).choices(range(50000), k=32)
    tokens = {
        name: worker.ask("decode", prompt, CHECKED - 1)[1]
        for name, worker in workers.items()
        if worker.entry.precision in ("fp32", "F32")
    }
    ours = tokens.get("gpt2cli fp32", [])
    return {
        name: sum(a == b for a, b in zip(theirs, ours, strict=False))
        for name, theirs in tokens.items()
    }


def program_table(
    names: list[str], times: Times, same: dict[str, int], memory: dict[str, int], decoded: int
) -> Table:
    """A row for each program."""
    table = Table(box=None)
    table.add_column("124M, batch 1", no_wrap=True)
    for heading in (
        "decode,\ntokens/s",
        "at 900,\ntokens/s",
        f"prefill {PREFILL},\ntokens/s",
        "cold start,\ns",
        "peak RSS,\nMB",
        "greedy\nas ours",
    ):
        table.add_column(heading, justify="right")
    amounts = {"decode": decoded, FAR: WINDOW, "prefill": PREFILL}
    for name in names:
        speeds = (n / statistics.median(times[what, name]) for what, n in amounts.items())
        table.add_row(
            name,
            *(f"{speed:.1f}" for speed in speeds),
            f"{statistics.median(times['cold start', name]):.2f}",
            f"{memory[name] / 1e6:.0f}",
            f"{same[name]}/{CHECKED}" if name in same else "",
        )
    return table


def aim_table(times: Times) -> Table:
    """The project's aims, and the measured ratios."""
    table = Table("ratio", "measured", "aim", "reached", box=None)

    def add(what: str, value: float | None, sign: str, aim: float) -> None:
        if value is None:
            table.add_row(what, "", f"{sign} {aim}", "not measured")
            return
        reached = value >= aim if sign == "≥" else value <= aim
        table.add_row(what, f"{value:.2f}", f"{sign} {aim}", "yes" if reached else "no")

    def faster(what: str, ours: str, *peers: str) -> float | None:
        """Our speed divided by the best peer's."""
        present = [peer for peer in peers if (what, peer) in times]
        if not present or (what, ours) not in times:
            return None
        best = min(present, key=lambda peer: statistics.median(times[what, peer]))
        return ratio(times[what, best], times[what, ours])

    fp32 = ("transformers fp32", "CTranslate2 fp32", "llama.cpp F32")
    int8 = ("CTranslate2 int8", "llama.cpp Q8_0")
    for what, value, aim in (
        ("fp32 decode ÷ CTranslate2 fp32", faster("decode", "gpt2cli fp32", fp32[1]), 1.1),
        ("int8 decode ÷ llama.cpp Q8_0", faster("decode", "gpt2cli int8", int8[1]), 1.6),
        ("int4 decode ÷ llama.cpp Q4_0", faster("decode", "gpt2cli int4", "llama.cpp Q4_0"), 1.5),
        ("fp32 prefill ÷ best peer in fp32", faster("prefill", "gpt2cli fp32", *fp32), 1.0),
        ("int8 prefill ÷ best peer in 8 bits", faster("prefill", "gpt2cli int8", *int8), 1.0),
    ):
        add(what, value, "≥", aim)
    for precision in ("fp32", "int8"):
        name = f"gpt2cli {precision}"
        value = ratio(times[NEAR, name], times[FAR, name])
        add(f"{precision} decode at 900 ÷ at 50 tokens of context", value, "≥", 0.85)
    start = faster("cold start", "gpt2cli fp32", fp32[0])
    add("fp32 cold start ÷ transformers, in time", 1 / start if start else None, "≤", 0.13)
    for command, aim in zip(COMMANDS, (0.25, 0.3), strict=True):
        add(f"{command}, s", statistics.median(times[command, ""]), "≤", aim)
    return table


def ratio(slow: list[float], fast: list[float]) -> float | None:
    """The median of the rounds' ratios; a machine that slows down slows both of a round."""
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(pairs) if pairs else None


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


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, few tokens: does it work?")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    rounds, decoded = (1, 40) if options.quick else (options.rounds, DECODED)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed programs start from bytecode
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the directory goes, too
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["HF_ASSETS_CACHE"] = str(directory / "codes")  # where our quantised weights go
        with console.status("writing the weights"):
            entries = prepare(directory)
        prompt = list(range(1000, 1032))
        with console.status("loading"):
            workers = start(entries, directory, prompt)
        try:
            same = agreement(workers)
            times = measure(workers, directory, rounds, decoded)
            memory = {name: worker.ask("memory") for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()
    out = Console(width=max(console.width, 100))
    out.print(program_table(list(workers), times, same, memory, decoded))
    out.print()
    out.print(aim_table(times))
    out.print()
    print(
        f"{machine()}; medians of {rounds} round{'s' if rounds > 1 else ''}; between the turns "
        f"other processes kept the cores {statistics.mean(others):.0f}% busy"
    )
    if statistics.mean(others) > QUIET:
        console.print("The machine was not idle, so these figures mean little; run it again.")


if __name__ == "__main__":
    main()
