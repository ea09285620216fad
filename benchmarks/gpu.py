"""Measure gpt2cli beside transformers on a CUDA GPU in one run, with the same random weights.

    python benchmarks/gpu.py [--models 124M 1558M] [--batches 1 64] [--rounds 5]

Greedy, in bfloat16. The two programs take turns, so that a GPU that slows down slows both;
medians are printed. "Bandwidth" is the share of what this GPU's memory can deliver, measured
by copying, that a step uses when it reads all weights and the KV cache just once: the limit
for decoding a few rows. Needs `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.sampling.rules import greedy
from gpt2cli.weights import checkpoint

PROMPT = 32
DECODED = 200
PREFILL = 512


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, until the GPU has done it."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action, taking turns, after one round that does not count."""
    times = [[seconds(action) for action in actions] for _ in range(rounds + 1)]
    return [statistics.median(measured) for measured in zip(*times[1:], strict=True)]


def bandwidth(rounds: int) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    (took,) = alternate(rounds, lambda: [target.copy_(source) for _ in range(10)])
    return 10 * 2 * source.numel() / took


def make_models(config: ModelConfig) -> tuple[TorchDecoder, GPT2LMHeadModel]:
    """The same random weights in both programs; the decoder is for one row."""
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.emb_dim,
            n_head=config.n_heads,
            n_layer=config.n_layers,
        )
    ).eval()
    with tempfile.TemporaryDirectory() as name:
        theirs.save_pretrained(name)
        ours = checkpoint.load(Path(name), device="cuda", dtype=torch.bfloat16)
    return TorchDecoder(ours), theirs.to("cuda", torch.bfloat16)


def decode(decoder: TorchDecoder, prompt: list[list[int]], count: int) -> list[list[int]]:
    """Greedy tokens as `generation.generate` computes them; every step's ids reach the host."""
    logits = decoder.prefill(prompt)
    chosen = [greedy(logits).tolist()]
    while len(chosen) < count:
        chosen.append(greedy(decoder.step(chosen[-1])).tolist())
    return chosen


def measure(name: str, batch: int, rounds: int, limit: float) -> Iterator[tuple[str, ...]]:
    """A table row for each thing measured."""
    spec = find_spec(name)
    assert spec is not None
    single, theirs = make_models(spec.model)
    decoder = TorchDecoder(single.model, batch, PREFILL + DECODED)

    def reference(prompt: torch.Tensor, new: int) -> torch.Tensor:
        return theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )

    def compare(length: int, new: int) -> list[float]:
        prompt = torch.randint(0, spec.model.vocab_size, (batch, length))
        rows, on_gpu = prompt.tolist(), prompt.cuda()
        return alternate(rounds, lambda: decode(decoder, rows, new), lambda: reference(on_gpu, new))

    first = compare(PROMPT, 1)
    whole = compare(PROMPT, 1 + DECODED)
    steps = [w - f for w, f in zip(whole, first, strict=True)]
    prefill = compare(PREFILL, 1)

    weights = sum(p.numel() * p.element_size() for p in single.model.parameters())
    held = PROMPT + DECODED / 2  # tokens in the cache, on average
    cache = batch * held * 2 * 2 * spec.model.n_layers * spec.model.emb_dim
    shares = [(weights + cache) * DECODED / took / limit for took in steps]
    label = f"{name}, batch {batch}"
    yield label, "decode, tokens/s", *rates(batch * DECODED, steps)
    yield label, "bandwidth", f"{shares[0]:.0%}", f"{shares[1]:.0%}", ""
    yield label, f"prefill of {PREFILL}, tokens/s", *rates(batch * PREFILL, prefill)
    yield (
        label,
        f"first token after {PROMPT}, ms",
        *(f"{t * 1e3:.2f}" for t in first),
        (f"{first[1] / first[0]:.2f}"),
    )


def rates(amount: int, took: list[float]) -> tuple[str, str, str]:
    """Amounts per second of both, and the ratio of ours to theirs."""
    return f"{amount / took[0]:,.0f}", f"{amount / took[1]:,.0f}", f"{took[1] / took[0]:.2f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["124M", "1558M"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu.py: there is no CUDA GPU here, which is what this measures")

    table = Table("bf16, greedy", "", "gpt2cli", "transformers", "ratio", box=None)
    with torch.inference_mode():
        limit = bandwidth(options.rounds)
        for name in options.models:
            for batch in options.batches:
                for row in measure(name, batch, options.rounds, limit):
                    table.add_row(*row)
                gc.collect()
                torch.cuda.empty_cache()
    Console().print(table)
    print(
        f"{torch.cuda.get_device_name()}, {limit / 1e9:,.0f} GB/s by copying, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; "
        f"medians of {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
