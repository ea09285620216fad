"""Compare gpt2cli's model with transformers' at full size, with the same random weights.

    python benchmarks/parity.py 124M 355M 774M 1558M

For each size: the largest difference between the logits after a 64-token prompt (limit 1e-4,
fp32), and how many of 200 greedy tokens are identical, for the PyTorch model, the NumPy decoder
and, where it was built, the native engine. With fewer bits the engine cannot be identical: there
the Kullback-Leibler divergence from transformers' distributions is printed, the mean over the
prompt, and at how many of its positions both have the same first choice. The 1558M model needs
about 14 GB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.decoders import native
from gpt2cli.decoders.native.decoder import EngineDecoder
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.generation.loop import generate
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import END_OF_TEXT
from gpt2cli.weights import checkpoint

LIMIT = 1e-4
PROMPT = 64
NEW = 200


def byte_tokenizer(size: int) -> Tokenizer:
    """A stand-in vocabulary of `size` tokens: generation asks for one, greedy text does not."""
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {b"%06d" % i: i for i in range(256, size - 1)}
    return Tokenizer(ranks, {END_OF_TEXT: size - 1})


def compare(name: str) -> bool:
    """Print a line for each decoder of one size; True if all agree."""
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
    prompt = torch.randint(0, c.vocab_size, (1, PROMPT))
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        reference.save_pretrained(directory)
        scores = reference(prompt).logits[0]  # (T, V)
        text = reference.generate(
            prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
        )[0, PROMPT:].tolist()
        del reference
        loaded, tensors = checkpoint.read(Path(directory))
        arrays = {name: tensor.to_numpy() for name, tensor in tensors.items()}
        decoders: dict[str, Decoder] = {
            "PyTorch": TorchDecoder(checkpoint.load(Path(directory))),
            "NumPy": NumpyDecoder(loaded, arrays),
            **({"engine": EngineDecoder(loaded, arrays)} if native.available() else {}),
        }
        agreed = [
            agrees(f"{name:>6} {kind:<8}", decoder, prompt[0].tolist(), scores[-1:].numpy(), text)
            for kind, decoder in decoders.items()
        ]
        decoders.clear()
        for precision in ("int8", "int4") if native.available() else ():
            decoder = EngineDecoder(loaded, arrays, PROMPT, precision=precision)
            diverges(f"{name:>6} {precision:<8}", decoder, prompt[0].tolist(), scores)
    return all(agreed)


def diverges(label: str, decoder: Decoder, prompt: list[int], scores: Any) -> None:
    """Print how far the distributions after each token of the prompt are from (T, V) `scores`."""
    sequence = decoder.open()
    rows = [decoder.read([Chunk(sequence, t, [token])]) for t, token in enumerate(prompt)]
    ours = torch.from_numpy(np.concatenate(rows)).double().log_softmax(-1)
    theirs = scores.double().log_softmax(-1)
    divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    print(f"{label} KL divergence {divergence:.1e} nats, first choice equal {same}/{len(prompt)}")


def agrees(label: str, decoder: Decoder, prompt: list[int], logits: Any, text: list[int]) -> bool:
    """Print one line for one decoder; True if it agrees."""
    sequence = decoder.open()
    difference = float(np.abs(decoder.read([Chunk(sequence, 0, prompt)]) - logits).max())
    decoder.close(sequence)
    greedy = GenerationConfig(SamplingConfig(temperature=0), max_tokens=NEW, ignore_eos=True)
    events = generate(decoder, byte_tokenizer(logits.shape[1]), prompt, greedy)
    same = sum(event.token_id == id_ for event, id_ in zip(events, text, strict=True))
    print(f"{label} largest difference {difference:.1e}, greedy tokens equal {same}/{NEW}")
    return difference <= LIMIT and same == NEW


if __name__ == "__main__":
    results = [compare(name) for name in sys.argv[1:] or ["124M"]]
    sys.exit(0 if all(results) else 1)
