"""Training speed and memory on this machine: `gpt2 train` beside a plain loop, LoRA beside all.

    python benchmarks/train.py [--rounds 3]

Programs take turns, each in a process of its own with 2 threads. Nothing is downloaded: weights and
texts are random, on which speed does not depend.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import yaml

HERE = Path(__file__).parent
BARD = yaml.safe_load((HERE.parent / "configs" / "bard.yaml").read_text("utf-8"))
SIZES = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias")
BATCH, STEPS = 8, 22  # of the small model
LARGE_STEPS = 4  # of 1,024 tokens


def run(*command: str) -> tuple[str, float]:
    """What a program prints, and the most memory that it took, in GB."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=-1, stderr=-1, text=True); "
        "assert not done.returncode, done.stderr; "
        "print(done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    *lines, kilobytes = done.stdout.splitlines()
    return "\n".join(lines), int(kilobytes) * 1024 / 1e9


def plain(size: dict[str, object], precision: str) -> float:
    """Tokens per second of the plain loop."""
    sizes = json.dumps(size)
    program = str(HERE / "plain_loop.py")
    return float(run(sys.executable, program, sizes, str(BATCH), str(STEPS), precision)[0])


def ours(
    folder: Path, text: Path, precision: str, steps: int, *options: str
) -> tuple[float, float]:
    """Tokens per second of `gpt2 train`, and GB of memory."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = ("-m", "gpt2cli", "train", "--data", str(text), "--out", str(out / "run"))
    common = ("--precision", precision, "--steps", str(steps), "--threads", "2")
    _, memory = run(sys.executable, *command, *common, "--eval-interval", "1000", *options)
    lines = (out / "run" / "log.jsonl").read_text("utf-8").splitlines()
    speeds = [float(json.loads(line)["tokens_per_second"]) for line in lines]
    return median(speeds[3:] if steps > LARGE_STEPS else speeds[2:]), memory


def write_text(path: Path, count: int) -> Path:
    """A text of so many random words."""
    numbers = random.Random(0)
    words = [
        "".join(numbers.choices("abcdefghijklmnop", k=numbers.randint(1, 8))) for _ in range(5000)
    ]
    path.write_text(" ".join(numbers.choices(words, k=count)), "utf-8")
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="a checkpoint of 124M's shape, for LoRA and all of it")
    arguments = parser.parse_args()
    figures: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(folder / "text.txt", 150_000)
        short = write_text(folder / "short.txt", 10_000)  # whose validation is brief
        for _ in range(arguments.rounds):
            for dropout in (0.0, 0.2):
                size = {key: BARD[key] for key in SIZES} | {"drop_rate": dropout}
                config = folder / "size.yaml"
                config.write_text(yaml.safe_dump(size), "utf-8")
                for precision in ("fp32", "bf16"):
                    title = f"bard, {precision}, dropout {dropout}"
                    figures[f"{title}: plain loop"].append(plain(size, precision))
                    options = ("--config", str(config), "--batch-size", str(BATCH))
                    speed, _ = ours(folder, text, precision, STEPS, *options)
                    figures[f"{title}: gpt2 train"].append(speed)
            if arguments.model:
                common = ("--from", arguments.model, "--batch-size", "1")
                for precision in ("fp32", "bf16"):
                    for kind, options in {"all": (), "LoRA": ("--lora",)}.items():
                        found = ours(folder, short, precision, LARGE_STEPS, *common, *options)
                        for unit, figure in zip(("tokens/s", "GB"), found, strict=True):
                            figures[f"124M, {precision}, {kind}: {unit}"].append(figure)
    for title, values in figures.items():
        print(f"{title:45} {median(values):10,.2f}    {[round(v, 2) for v in values]}")


if __name__ == "__main__":
    main()
