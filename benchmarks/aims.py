"""What peers.py measured, as tables: every program, and the ratios to aim for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from entries import OURS, Entry
from rich.table import Table

DECODED, PREFILL, CHECKED = 200, 512, 20
WINDOW = 60  # tokens decoded around a length of context
NEAR, FAR = "decode at 50", "decode at 900"
COLD = "cold start"

Times = dict[
    tuple[str, str], list[float]
]  # of (what, whom): seconds, one per round; of decode and prefill, per token


@dataclass(frozen=True)
class Aim:
    """Ours at something has to be so many times as fast as the fastest of some others."""

    what: str
    precision: str
    others: Sequence[str]
    goal: float

    @property
    def name(self) -> str:
        """As a table calls it."""
        other = " or ".join(self.others)
        return f"{self.precision} {self.what} ÷ {other}"

    def ratios(self, times: Times) -> list[float]:
        """One for each round; none without both sides."""
        ours = f"{OURS} {self.precision}"
        present = [other for other in self.others if (self.what, other) in times]
        if not present or (self.what, ours) not in times:
            return []
        best = min(present, key=lambda other: statistics.median(times[self.what, other]))
        return ratios(times[self.what, best], times[self.what, ours])


FP32 = ("transformers fp32", "CTranslate2 fp32", "llama.cpp F32")
HALF = ("llama.cpp F16", "llama.cpp BF16")
AIMS = (
    Aim("decode", "fp32", ("llama.cpp F32",), 1.05),
    Aim("decode", "fp32", FP32[:2], 1.0),
    Aim("decode", "bf16", ("gpt2cli fp32",), 1.7),
    Aim("decode", "bf16", HALF, 1.2),
    Aim("decode", "int8", ("llama.cpp Q8_0",), 1.8),
    Aim("decode", "int4", ("llama.cpp Q4_0",), 2.0),
    Aim("prefill", "fp32", ("CTranslate2 fp32",), 1.15),
    Aim("prefill", "bf16", ("gpt2cli fp32",), 1.0),
    Aim("prefill", "int8", ("CTranslate2 int8",), 1.5),
    Aim("prefill", "int8", ("gpt2cli int8 (baseline)",), 1.5),
    Aim("prefill", "int4", ("gpt2cli int8",), 1.0),
)
FLAT = 0.9  # decoding at 900 tokens ÷ at 50
COLD_PEERS = {"fp32": "llama.cpp F32", "int8": "llama.cpp Q8_0", "int4": "llama.cpp Q4_0"}
COMMANDS = {  # their arguments, and the seconds to stay within
    "gpt2 --help": (("--help",), 0.10),
    "gpt2 info": (("info",), 0.20),
    "gpt2 generate -m bard -n 1": (("generate", "ROMEO:", "-m", "bard", "-n", "1"), 0.20),
}
INT8_1558M = 1.8e9  # bytes of memory


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Of each round; none without both sides. A machine that slows down slows both of a round."""
    if not slow or not fast:
        return []
    return [a / b for a, b in zip(slow, fast, strict=True)]


def program_table(
    title: str, entries: Sequence[Entry], times: Times, same: Mapping[str, int], memory: dict
) -> Table:
    """A row for each program."""
    table = Table(box=None)
    table.add_column(title, no_wrap=True)
    for heading in (
        "decode,\ntokens/s",
        "at 900,\ntokens/s",
        f"prefill {PREFILL},\ntokens/s",
        "cold start,\ns",
        "peak RSS,\nMB",
        "greedy\nas ours",
    ):
        table.add_column(heading, justify="right")
    for entry in entries:
        name = entry.name
        speeds = (1 / statistics.median(times[what, name]) for what in ("decode", FAR, "prefill"))
        table.add_row(
            entry.label,
            *(f"{speed:.1f}" for speed in speeds),
            f"{statistics.median(times[COLD, name]):.2f}",
            f"{memory[name] / 1e6:.0f}",
            f"{same[name]}/{CHECKED}" if name in same else "",
        )
    return table


def aim_table(times: Times, memory: Mapping[str, int], size: str) -> Table:
    """The project's aims and the ratios, as medians of each round's, with their range."""
    table = Table("ratio, the median of each round's", "measured", "range", "aim", "reached")
    table.box = None
    for name, found, sign, goal in rows(times, memory, size):
        if not found:
            continue  # not asked for, or left out
        value = statistics.median(found)
        reached = value >= goal if sign == "≥" else value <= goal
        table.add_row(
            name,
            f"{value:.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            f"{sign} {goal}",
            "yes" if reached else "no",
        )
    return table


def rows(
    times: Times, memory: Mapping[str, int], size: str
) -> Iterator[tuple[str, list[float], str, float]]:
    """What each aim is called, its figure in every round, and what that has to be."""
    for aim in AIMS:
        yield aim.name, aim.ratios(times), "≥", aim.goal
    for precision in ("fp32", "int8", "int4"):
        name = f"{OURS} {precision}"
        flat = ratios(times[NEAR, name], times[FAR, name])
        yield f"{precision} decode at 900 ÷ at 50 tokens of context", flat, "≥", FLAT
    for precision, peer in COLD_PEERS.items():
        name = f"{OURS} {precision}"
        found = ratios(times[COLD, name], times[COLD, peer])
        yield f"{precision} cold start ÷ {peer}, in time", found, "≤", 1.0
    for command, (_, most) in COMMANDS.items():
        yield f"{command}, s", times[command, ""], "≤", most
    if size == "1558M" and (int8 := f"{OURS} int8") in memory:
        yield "int8 peak RSS, MB", [memory[int8] / 1e6], "≤", INT8_1558M / 1e6


def baseline_table(entries: Sequence[Entry], times: Times) -> Table:
    """How many times as fast as the baseline this checkout is, with the rounds' range."""
    kinds = ("decode", FAR, "prefill", COLD)
    table = Table("this checkout ÷ the baseline, in speed", *kinds, box=None)
    for entry in entries:
        before, after = (f"{OURS} {entry.precision} (baseline)", f"{OURS} {entry.precision}")
        if entry.name != after or ("decode", before) not in times:
            continue
        cells = []
        for kind in kinds:
            found = ratios(times[kind, before], times[kind, after])
            median = statistics.median(found)
            cells.append(f"{median:.2f} ({min(found):.2f} to {max(found):.2f})")
        table.add_row(entry.precision, *cells)
    return table
