"""Measure gpt2cli on a CUDA GPU, alone and beside transformers, with random weights.

    python benchmarks/gpu.py [--models 124M 1558M] [--sequences 1 16 64 256] [--rounds 5] [--quick]

Greedy tokens per second of many sequences of different lengths, with CUDA graphs and without;
prompts; how far a text's logits differ in company; then the same work in transformers, taking
turns. Every figure is a median. "Bandwidth" is the share of what this GPU's memory can deliver,
measured by copying, that a step uses when it reads all weights and the KV cache just once: the
limit for decoding a few sequences. No weights or other files are needed, nor an installation; a
part that fails is reported, and the others still run. `--quick` tries the script with a tiny
model, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.decoders.pages import Chunk, room_for
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.sampling.rules import greedy
from gpt2cli.weights.names import hub_name

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHORTEST, LONGEST = 32, 480  # tokens of a sequence when decoding begins
PREFILL = 512
PROMPT = 32  # beside transformers
ENOUGH = 130  # seconds, after which the comparison with transformers is left out


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    models: dict[str, ModelConfig]
    precisions: dict[str, torch.dtype]
    sequences: list[int]
    rounds: int
    steps: int


def synchronize() -> None:
    """Wait until the GPU has done everything."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, until the GPU has done it."""
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started


def alternate(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action, taking turns, after one round that does not count."""
    times = [[seconds(action) for action in actions] for _ in range(rounds + 1)]
    return [statistics.median(measured) for measured in zip(*times[1:], strict=True)]


def bandwidth(rounds: int) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.empty(2**30 if DEVICE.type == "cuda" else 2**24, dtype=torch.uint8).to(DEVICE)
    target = torch.empty_like(source)
    (took,) = alternate(rounds, lambda: [target.copy_(source) for _ in range(10)])
    return 10 * 2 * source.numel() / took


def make_model(config: ModelConfig, dtype: torch.dtype) -> GPT2:
    """Random weights, the same ones in every precision but for rounding."""
    torch.manual_seed(0)
    with DEVICE:
        model = GPT2(config)
    return model.init_weights().requires_grad_(False).eval().to(dtype)


def random_ids(config: ModelConfig, *shape: int) -> Any:
    """Token ids as nested lists."""
    return torch.randint(0, config.vocab_size, shape).tolist()


Text = tuple[int, int]
"""A sequence and the number of tokens that it holds before decoding begins."""


def open_texts(decoder: TorchDecoder, count: int) -> list[Text]:
    """Sequences whose lengths are spread evenly between the shortest and the longest."""
    lengths = [SHORTEST + (LONGEST - SHORTEST) * (2 * i + 1) // (2 * count) for i in range(count)]
    texts = [(decoder.open(), length) for length in lengths]
    for sequence, length in texts:
        decoder.read([Chunk(sequence, 0, random_ids(decoder.config, length))])
    return texts


def decode(decoder: TorchDecoder, texts: Sequence[Text], steps: int, ids: list[int]) -> None:
    """Greedy tokens after `ids`, over again from where the texts began; each reaches the host."""
    for t in range(steps):
        chunks = [
            Chunk(sequence, length + t, [id_])
            for (sequence, length), id_ in zip(texts, ids, strict=True)
        ]
        ids = greedy(decoder.read(chunks)).tolist()


@contextmanager
def without_graphs(decoder: TorchDecoder) -> Iterator[None]:
    """Let the decoder start every kernel from Python, as it does where there are no graphs."""
    decoder._step, kept = None, decoder._step
    try:
        yield
    finally:
        decoder._step = kept


def measure_decoding(name: str, model: GPT2, plan: Plan, limit: float) -> None:
    """Print a line per number of sequences."""
    print("\n| decode | sequences | tokens/s | ratio to 1 | bandwidth | without graphs | gain |")
    print("|---|---|---|---|---|---|---|")
    weights = sum(p.nbytes for p in model.parameters())
    first = 0.0
    for count in plan.sequences:
        decoder = TorchDecoder(model, room_for(count, LONGEST + plan.steps))
        texts = open_texts(decoder, count)
        run = partial(decode, decoder, texts, plan.steps, [1] * count)

        def run_without(decoder: TorchDecoder = decoder, run: Callable[[], None] = run) -> None:
            with without_graphs(decoder):
                run()

        took, slower = alternate(plan.rounds, run, run_without)
        speed = count * plan.steps / took
        first = first or speed / count
        held = sum(length + plan.steps / 2 for _, length in texts)
        read = weights + held * decoder._cache.kv[:, 0].nbytes
        print(
            f"| {name} | {count} | {speed:,.0f} | {speed / first:.1f} "
            f"| {read * plan.steps / took / limit:.0%} | {count * plan.steps / slower:,.0f} "
            f"| {slower / took:.2f} |",
            flush=True,
        )


def measure_prompts(name: str, model: GPT2, plan: Plan) -> None:
    """Print the tokens per second of prompts read alone, side by side, and of ever new lengths."""
    several = min(16, max(plan.sequences))
    decoder = TorchDecoder(model, room_for(several, PREFILL))
    places = [decoder.open() for _ in range(several)]
    prompts = random_ids(model.config, several, PREFILL)
    chunks = [Chunk(s, 0, ids) for s, ids in zip(places, prompts, strict=True)]
    lengths = iter(range(100, PREFILL))  # kernels may be chosen, or planned, anew for each
    unseen: list[int] = []

    def read_unseen() -> None:
        for _ in range(8):
            unseen.append(next(lengths))
            decoder.read([Chunk(places[0], 0, prompts[0][: unseen[-1]])])

    alone, together, new = alternate(
        plan.rounds,
        lambda: decoder.read(chunks[:1]),
        lambda: decoder.read(chunks),
        read_unseen,
    )
    each = sum(unseen) / (plan.rounds + 1)
    print(
        f"\n{name} prefill, tokens/s: {PREFILL / alone:,.0f} of {PREFILL}, "
        f"{several * PREFILL / together:,.0f} of {several} times {PREFILL}, "
        f"{each / new:,.0f} of lengths not seen before",
        flush=True,
    )


def measure_company(name: str, model: GPT2, plan: Plan) -> None:
    """Print how far logits of texts read alone are from those of the same texts side by side."""
    count = min(64, max(plan.sequences))
    decoder = TorchDecoder(model, room_for(count, LONGEST + 1))
    chunks = [Chunk(s, length, [1]) for s, length in open_texts(decoder, count)]
    together = torch.as_tensor(decoder.read(chunks))
    alone = torch.cat([torch.as_tensor(decoder.read([chunk])) for chunk in chunks])
    same = int((alone.argmax(-1) == together.argmax(-1)).sum())
    identical = int((alone == together).all(dim=-1).sum())
    print(
        f"{name} beside {count - 1} others: logits differ by {(alone - together).abs().max():.1e} "
        f"of {alone.abs().max():.1e} at most, {identical}/{count} not at all, "
        f"{same}/{count} first choices are the same",
        flush=True,
    )


def beside_transformers(label: str, model: GPT2, count: int, plan: Plan) -> None:
    """Print lines of ours, theirs, and the ratio of speeds."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    sizes = {"n_positions": c.context_length, "n_embd": c.emb_dim, "n_head": c.n_heads}
    config = GPT2Config(vocab_size=c.vocab_size, n_layer=c.n_layers, **sizes)
    theirs = GPT2LMHeadModel(config).eval().to(DEVICE, model.token_embedding.weight.dtype)
    state = {"transformer." + hub_name(n): p for n, p in model.named_parameters()}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    decoder = TorchDecoder(model, room_for(count, PREFILL + 1))
    places = [decoder.open() for _ in range(count)]

    def ours(prompts: list[list[int]], new: int) -> None:
        chunks = [Chunk(s, 0, ids) for s, ids in zip(places, prompts, strict=True)]
        ids = greedy(decoder.read(chunks)).tolist()
        decode(decoder, [(s, len(prompts[0])) for s in places], new - 1, ids)

    def reference(prompts: torch.Tensor, new: int) -> torch.Tensor:
        return theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )

    def compare(length: int, new: int) -> list[float]:
        prompts = random_ids(c, count, length)
        on_gpu = torch.tensor(prompts, device=DEVICE)
        return alternate(plan.rounds, partial(ours, prompts, new), partial(reference, on_gpu, new))

    first, whole = compare(PROMPT, 1), compare(PROMPT, 1 + plan.steps)
    steps = [w - f for w, f in zip(whole, first, strict=True)]
    print_rates(f"{label}, {count}: decode", count * plan.steps, steps)
    print_rates(f"{label}, {count}: prefill of {PREFILL}", count * PREFILL, compare(PREFILL, 1))


def print_rates(label: str, tokens: int, took: list[float]) -> None:
    """Tokens per second of both, and the ratio of ours to theirs."""
    ours, theirs = took
    print(
        f"| {label} | {tokens / ours:,.0f} | {tokens / theirs:,.0f} | {theirs / ours:.2f} |",
        flush=True,
    )


def attempt(part: Callable[..., None], *arguments: object) -> bool:
    """Measure one part and free its memory; whether it succeeded."""
    try:
        part(*arguments)
    except (RuntimeError, ImportError):  # of a GPU or a library: the other parts can be measured
        traceback.print_exc()
        return False
    finally:
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    return True


def measure(plan: Plan) -> bool:
    """Print everything; whether all parts succeeded."""
    started = time.perf_counter()
    limit = bandwidth(plan.rounds)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{device}, {limit / 1e9:,.0f} GB/s by copying, torch {torch.__version__}")
    done = []
    for name, config in plan.models.items():
        for precision, dtype in plan.precisions.items():
            model, label = make_model(config, dtype), f"{name} {precision}"
            done.append(attempt(measure_decoding, label, model, plan, limit))
            done.append(attempt(measure_prompts, label, model, plan))
            done.append(attempt(measure_company, label, model, plan))
    print("\n| tokens/s | gpt2cli | transformers | ratio |\n|---|---|---|---|")
    for name, config in plan.models.items():
        model = make_model(config, torch.bfloat16)
        for count in sorted({1, min(64, max(plan.sequences))}):
            if time.perf_counter() - started > ENOUGH:
                print(f"(left out: {name}, {count}, after {ENOUGH} s)")
                continue
            done.append(attempt(beside_transformers, f"{name} bf16", model, count, plan))
    print(f"\nmedians of {plan.rounds} rounds, {time.perf_counter() - started:.0f} s in all")
    return all(done)


def main() -> None:
    """Read the options, measure, and exit with 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["124M"])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="try it with a tiny model")
    options = parser.parse_args()
    if options.quick:
        tiny = ModelConfig(1000, 1024, emb_dim=64, n_heads=2, n_layers=2)
        plan = Plan({"tiny": tiny}, PRECISIONS, [1, 4], rounds=1, steps=3)
    elif DEVICE.type == "cuda":
        specs = {name: find_spec(name) for name in options.models}
        models = {name: spec.model for name, spec in specs.items() if spec}
        plan = Plan(models, PRECISIONS, options.sequences, options.rounds, steps=32)
    else:
        sys.exit("gpu.py: there is no CUDA GPU here, which is what this measures; --quick tries it")
    with torch.inference_mode():
        done = measure(plan)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
