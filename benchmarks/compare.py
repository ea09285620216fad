"""Measure gpt2cli beside transformers in one run, with the same random 124M weights.

    python benchmarks/compare.py [--rounds 5]

Decode and prefill alternate between the two programs within one process, cold starts within
one loop of fresh processes, so that a machine that slows down slows both. Medians are printed,
and the ratio to aim for. Needs `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from convert import write_vocabulary
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.decoders import opening
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.system.device import place

DECODED = 100
PROMPT = 32
PREFILL = 512

# A script that does what `gpt2 generate` does, as a user of transformers would write it.
COLD_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer("ROMEO: But soft", return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=1, do_sample=True, pad_token_id=0)
print(tokenizer.decode(out[0]))
"""


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def alternate(rounds: int, what: str, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action, taking turns, after one round that does not count."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in track(range(rounds + 1), what, console=Console(stderr=True), transient=True):
        for action, measured in zip(actions, times, strict=True):
            elapsed = seconds(action)
            if turn:
                measured.append(elapsed)
    return [statistics.median(measured) for measured in times]


def write_model(directory: Path) -> GPT2LMHeadModel:
    """A 124M checkpoint of random weights that both programs load."""
    torch.manual_seed(0)
    write_vocabulary(directory)
    reference = GPT2LMHeadModel(GPT2Config()).eval()
    reference.save_pretrained(directory)
    return reference


def open_decoder(directory: Path) -> Decoder:
    """The decoder that a user of this machine's CPU gets."""
    return opening.open_decoder(directory, place("cpu"), PREFILL + DECODED)


def measure_decode(directory: Path, reference: GPT2LMHeadModel, rounds: int) -> list[float]:
    """Seconds to decode, after a prefill that is not counted."""
    decoder = open_decoder(directory)
    prompt = torch.randint(0, 50257, (1, PROMPT))

    def ours() -> None:
        token = 0
        for t in range(PROMPT, PROMPT + DECODED):
            token = int(decoder.read([Chunk(sequence, t, [token])])[0].argmax())

    def theirs(new: int) -> None:
        reference.generate(
            prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )

    sequence = decoder.open()
    decoder.read([Chunk(sequence, 0, prompt[0].tolist())])
    mine, whole, first = alternate(
        rounds, "decode", ours, lambda: theirs(DECODED + 1), lambda: theirs(1)
    )
    return [mine, whole - first]


def measure_prefill(directory: Path, reference: GPT2LMHeadModel, rounds: int) -> list[float]:
    """Seconds to read a prompt and choose one token."""
    decoder = open_decoder(directory)
    sequence = decoder.open()
    prompt = torch.randint(0, 50257, (1, PREFILL))
    return alternate(
        rounds,
        "prefill",
        lambda: decoder.read([Chunk(sequence, 0, prompt[0].tolist())])[0].argmax(),
        lambda: reference.generate(prompt, max_new_tokens=1, do_sample=False, pad_token_id=0),
    )


def run(*command: str) -> None:
    """Run a process to its end, discarding its output."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=env)


def measure_cold_start(directory: Path, rounds: int) -> list[float]:
    """Seconds from the command to its first token, the process start included."""
    gpt2 = [sys.executable, "-m", "gpt2cli"]
    return alternate(
        rounds,
        "cold start",
        lambda: run(*gpt2, "generate", "ROMEO: But soft", "-m", str(directory), "-n", "1"),
        lambda: run(sys.executable, "-c", COLD_TRANSFORMERS, str(directory)),
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        directory = Path(name)
        reference = write_model(directory)
        decode = measure_decode(directory, reference, options.rounds)
        prefill = measure_prefill(directory, reference, options.rounds)
        cold = measure_cold_start(directory, options.rounds)
    gpt2 = [sys.executable, "-m", "gpt2cli"]
    (help_time,) = alternate(options.rounds, "--help", lambda: run(*gpt2, "--help"))
    (info_time,) = alternate(options.rounds, "info", lambda: run(*gpt2, "info"))

    table = Table("124M, fp32, batch 1", "gpt2cli", "transformers", "ratio", "aim", box=None)
    for name, amount, (ours, theirs), aim in (
        (f"decode after {PROMPT} tokens, tokens/s", DECODED, decode, 1.7),
        (f"prefill of {PREFILL}, tokens/s", PREFILL, prefill, 1.3),
    ):
        cells = f"{amount / ours:.1f}", f"{amount / theirs:.1f}", f"{theirs / ours:.2f}"
        table.add_row(name, *cells, f"≥ {aim}")
    ours, theirs = cold
    table.add_row(
        "cold start to first token, s",
        f"{ours:.2f}",
        f"{theirs:.2f}",
        f"{ours / theirs:.2f}",
        "≤ 0.5",
    )
    table.add_row("gpt2 --help, s", f"{help_time:.2f}", "", "", "≤ 0.3")
    table.add_row("gpt2 info, s", f"{info_time:.2f}", "", "", "≤ 0.4")
    Console().print(table)
    import transformers

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; medians of {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
