"""How much faster a model is with a draft, by how often the draft is right.

    python benchmarks/draft.py [--model 1558M] [--draft 124M] [--precision int8] [--rounds 3]

Two models with random weights of these sizes, in which the embedding of a position outweighs all
else and decides the next token. So both do all of their work, and how often they agree is known:
they are given the same tokens to say but for a share of the positions. Alone and with each draft
they take turns; ratios are those of a round, and the median of them counts. The text has to be
the same every time. 1558M needs about 14 GB while its weights are made, and 6.2 GB of disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from parity import byte_tokenizer
from rich.console import Console
from rich.table import Table

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.decoders import opening
from gpt2cli.decoders.native import quantize
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.generation import loop, speculative
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.system.device import Placement
from gpt2cli.system.precision import QUANTIZED
from gpt2cli.weights import checkpoint

PROMPT = 32
NEW = 64
AGREEMENTS = (1.0, 0.8, 0.6, 0.4)
GOLDEN = (5**0.5 - 1) / 2


def write_model(name: str, says: np.ndarray, directory: Path) -> None:
    """Random weights, and at each position s the token `says[s]` (S,) to follow it."""
    spec = find_spec(name)
    assert spec is not None
    torch.manual_seed(0)
    model = GPT2(spec.model).init_weights()
    with torch.no_grad():
        model.position_embedding.weight.copy_(
            500 * model.token_embedding.weight[torch.from_numpy(says)]
        )
    directory.mkdir()
    checkpoint.save(model, directory, spec.model.vocab_size - 1, torch.float32)


def open_decoder(directory: Path, precision: str) -> Decoder:
    return opening.open_decoder(directory, Placement("cpu", precision))


def run(decoder: Decoder, draft: Decoder | None) -> tuple[float, list[int | None], float | None]:
    """Seconds for `NEW` greedy tokens after the first, the tokens, and how many were accepted."""
    tokenizer = byte_tokenizer(50257)
    config = GenerationConfig(SamplingConfig(temperature=0), NEW + 1, ignore_eos=True)
    stats, prompt = speculative.DraftStats(), list(range(256, 256 + PROMPT))
    if draft is None:
        events = loop.generate(decoder, tokenizer, prompt, config)
    else:
        proposer = speculative.ModelDraft(draft)
        events = speculative.generate(decoder, proposer, tokenizer, prompt, config, stats)
    ids = [next(events).token_id]
    started = time.perf_counter()
    ids += [event.token_id for event in events]
    return time.perf_counter() - started, ids, stats.acceptance_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1558M")
    parser.add_argument("--draft", default="124M")
    parser.add_argument("--precision", default="fp32", choices=("fp32", *QUANTIZED))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    says = np.random.default_rng(0).integers(50000, size=1024)
    times: dict[float | None, list[float]] = {agreement: [] for agreement in (None, *AGREEMENTS)}
    accepted: dict[float, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(options.model, says, Path(folder) / "model")
        decoder = open_decoder(Path(folder) / "model", options.precision)
        drafts: dict[float, Decoder] = {}
        for agreement in AGREEMENTS:
            directory = Path(folder) / f"draft-{agreement}"
            differs = GOLDEN * np.arange(1024) % 1 >= agreement  # evenly spread
            write_model(options.draft, np.where(differs, says + 1, says), directory)
            drafts[agreement] = open_decoder(directory, options.precision)
        run(decoder, None)
        for _ in range(options.rounds):
            took, expected, _ = run(decoder, None)
            times[None].append(took)
            for agreement, draft in drafts.items():
                took, ids, accepted[agreement] = run(decoder, draft)
                if ids != expected:
                    raise SystemExit(f"the text differs with a draft that is right {agreement:.0%}")
                times[agreement].append(took)

    quantize.prune()  # the codes of models that are gone
    table = Table(title=f"{options.model} with a draft of {options.draft}, {options.precision}")
    for column in ("draft right", "accepted", "tokens/s", "ratio to alone", "spread of ratios"):
        table.add_column(column, justify="right")
    for agreement, took in times.items():
        ratios = [alone / seconds for alone, seconds in zip(times[None], took, strict=True)]
        speed = f"{NEW / statistics.median(took):.1f}"
        if agreement is None:
            table.add_row("alone", "", speed, "", "")
            continue
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rate = f"{accepted[agreement]:.0%}"
        table.add_row(f"{agreement:.0%}", rate, speed, f"{statistics.median(ratios):.2f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
