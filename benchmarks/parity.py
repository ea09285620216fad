"""Compare gpt2cli's model with transformers' at full size, with the same random weights.

    python benchmarks/parity.py 124M 355M 774M 1558M

For each size: the largest difference between the logits over a 64-token prompt (limit 1e-4,
fp32), and whether 100 greedy tokens are identical. The 1558M model needs about 14 GB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli import checkpoint
from gpt2cli.config import END_OF_TEXT, SamplingConfig, find_spec
from gpt2cli.generation import GenerationConfig, generate
from gpt2cli.tokenizer import Tokenizer
from gpt2cli.torch_decoder import TorchDecoder

LIMIT = 1e-4


def byte_tokenizer(size: int) -> Tokenizer:
    """A stand-in vocabulary of `size` tokens: generation asks for one, greedy text does not."""
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {b"%06d" % i: i for i in range(256, size - 1)}
    return Tokenizer(ranks, {END_OF_TEXT: size - 1})


def compare(name: str) -> bool:
    """Print one line for one size; True if it agrees."""
    spec = find_spec(name)
    assert spec is not None
    torch.manual_seed(0)
    c = spec.model
    config = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.context_length,
        n_embd=c.emb_dim,
        n_head=c.n_heads,
        n_layer=c.n_layers,
    )
    reference = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in reference.parameters():  # biases too, or they would go untested
            p.normal_(std=0.02) if p.dim() < 2 else None
        for block in reference.transformer.h:
            block.ln_1.weight.add_(1)
            block.ln_2.weight.add_(1)
        reference.transformer.ln_f.weight.add_(1)
    prompt = torch.randint(0, c.vocab_size, (1, 64))
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        reference.save_pretrained(directory)
        model = checkpoint.load(Path(directory))
        difference = (model(prompt) - reference(prompt).logits).abs().max().item()
        theirs = reference.generate(
            prompt, max_new_tokens=100, min_new_tokens=100, do_sample=False, pad_token_id=0
        )[0, 64:].tolist()
        greedy = GenerationConfig(SamplingConfig(temperature=0), max_tokens=100, ignore_eos=True)
        events = generate(
            TorchDecoder(model), byte_tokenizer(c.vocab_size), prompt[0].tolist(), greedy
        )
        ours = [event.token_id for event in events]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{name:>6}  largest difference {difference:.2e}  greedy tokens equal {same}/100")
    return difference <= LIMIT and same == 100


if __name__ == "__main__":
    results = [compare(name) for name in sys.argv[1:] or ["124M"]]
    sys.exit(0 if all(results) else 1)
