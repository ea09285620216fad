"""Compare interventions with TransformerLens's, with the same random weights.

    pip install 'transformer-lens<3'
    python benchmarks/interventions.py [--layers 12] [--width 768] [--heads 12]

For each kind of intervention: the largest difference between the logits after a prompt, or
between what patches restore, or between the scores of heads, in fp32; the limit is 1e-4.
TransformerLens 2 has a forward pass of its own; later versions call that of transformers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
from transformer_lens.loading_from_pretrained import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from gpt2cli.analysis import heads as kinds
from gpt2cli.analysis import patching as ours
from gpt2cli.config.interventions import Interventions
from gpt2cli.config.model import ModelConfig
from gpt2cli.model import interventions
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import END_OF_TEXT
from gpt2cli.weights import checkpoint

LIMIT = 1e-4
VOCABULARY = 1000
TEXT, REFERENCE = "A shocking finding", "It was the best of times, it was the worst"
CORRUPTED = "A charming finding"
TOWARDS, AWAY = "I love it", "I hate this"

Hooks = list[tuple[str, Callable[..., Any]]]


def tokenizer() -> Tokenizer:
    """A token per byte, and others that no text has."""
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {b"%06d" % i: i for i in range(256, VOCABULARY - 1)}
    return Tokenizer(ranks, {END_OF_TEXT: VOCABULARY - 1})


def models(config: ModelConfig) -> tuple[GPT2, HookedTransformer]:
    """Ours and theirs, whose logits have a standard deviation of about 3."""
    generator = torch.Generator().manual_seed(0)
    model = GPT2(config).init_weights(generator).requires_grad_(False).eval()
    for name, p in model.named_parameters():
        if p.dim() < 2:
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
        elif "embedding" not in name:
            p.mul_(3)
    model.token_embedding.weight.mul_(5)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(model, Path(directory), VOCABULARY - 1, torch.float32)
        hub = GPT2LMHeadModel.from_pretrained(directory)
    theirs = HookedTransformer(
        HookedTransformerConfig(
            n_layers=config.n_layers,
            d_model=config.emb_dim,
            n_ctx=config.context_length,
            d_head=config.head_dim,
            n_heads=config.n_heads,
            d_vocab=config.vocab_size,
            act_fn="gelu_new",
            normalization_type="LN",
            eps=config.layer_norm_eps,
            device="cpu",
        )
    )
    theirs.load_state_dict(convert_gpt2_weights(hub, theirs.cfg), strict=False)
    theirs.set_use_attn_result(False)
    return model, theirs


class Comparison:
    """Both models, and how far apart they are."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.tokenizer = config, tokenizer()
        self.model, self.theirs = models(config)
        self.ids = self.tokenizer.encode(TEXT)

    def cached(self, ids: Sequence[int], name: str) -> Tensor:
        """What theirs computes at a hook. (T, …)"""
        return self.theirs.run_with_cache(torch.tensor([ids]), names_filter=name)[1][name][0]

    def logits(self, plan: Interventions, hooks: Hooks) -> float:
        """The largest difference under an intervention."""
        edits = interventions.edits(self.model, plan, self.tokenizer)
        rows = torch.tensor([self.ids])
        expected = self.theirs.run_with_hooks(rows, fwd_hooks=hooks)
        plain = self.theirs(rows)
        assert not hooks or (expected - plain).abs().max() > 100 * LIMIT, "nothing was changed"
        return float((self.model(rows, edits=edits) - expected).abs().max())

    def ablations(self) -> Iterator[tuple[str, float]]:
        """Zero and mean, of every kind of part."""
        last = self.config.n_layers - 1
        yield "nothing", self.logits(Interventions(), [])
        for layer, head in ((0, 0), (last // 2, 1), (last, self.config.n_heads - 1)):
            hooks = [(f"blocks.{layer}.attn.hook_z", partial(_set, head, 0.0))]
            yield f"head {layer}.{head}", self.logits(_plan(f"{layer}.{head}"), hooks)
        for layer in (0, last):
            attention, mlp = f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"
            zeros = {name: (name, partial(_all, 0.0)) for name in (attention, mlp)}
            yield f"attention.{layer}", self.logits(_plan(f"attention.{layer}"), [zeros[attention]])
            yield f"mlp.{layer}", self.logits(_plan(f"mlp.{layer}"), [zeros[mlp]])
            yield f"layer.{layer}", self.logits(_plan(f"layer.{layer}"), list(zeros.values()))
        reference = self.tokenizer.encode(REFERENCE)
        for part, name in (
            ("1.2", "blocks.1.attn.hook_z"),
            ("attention.1", "blocks.1.hook_attn_out"),
            ("mlp.1", "blocks.1.hook_mlp_out"),
        ):
            mean = self.cached(reference, name).mean(0)
            hook = partial(_set, 2, mean[2]) if part == "1.2" else partial(_all, mean)
            plan = Interventions.of([part], "mean", REFERENCE)
            yield f"{part} with its mean", self.logits(plan, [(name, hook)])
        names = [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(last + 1)]
        hooks = [(name, partial(_hide, 5)) for name in names]
        yield "position.5", self.logits(_plan("position.5"), hooks)

    def steering(self) -> Iterator[tuple[str, float]]:
        """In the first, a middle and the last layer."""
        for layer in (0, self.config.n_layers // 2, self.config.n_layers - 1):
            name = f"blocks.{layer}.hook_resid_pre"
            ends = (
                self.cached([VOCABULARY - 1, *self.tokenizer.encode(text)], name)[-1]
                for text in (TOWARDS, AWAY)
            )
            direction = 3 * (next(ends) - next(ends))
            one = {"towards": TOWARDS, "away": AWAY, "layer": layer, "strength": 3, "first": 4}
            plan = Interventions.of(steer=[one])
            yield f"steering {layer}", self.logits(plan, [(name, partial(_add, direction, 4))])

    def patches(self) -> Iterator[tuple[str, float]]:
        """All four maps, each by TransformerLens's own function."""
        clean, corrupted = (self.tokenizer.encode(text) for text in (TEXT, CORRUPTED))
        answer, versus = 7, 200
        found = ours.patch(
            self.model, self.tokenizer, clean, corrupted, answer=answer, versus=versus
        )
        answers = found.answers

        def metric(logits: Tensor) -> Tensor:
            difference = logits[0, -1, answer] - logits[0, -1, versus]
            return (difference - answers.corrupted) / (answers.clean - answers.corrupted)

        _, cache = self.theirs.run_with_cache(torch.tensor([clean]))
        for name, function in (
            ("stream", patching.get_act_patch_resid_pre),
            ("attention", patching.get_act_patch_attn_out),
            ("mlp", patching.get_act_patch_mlp_out),
            ("heads", patching.get_act_patch_attn_head_out_all_pos),
        ):
            expected = function(self.theirs, torch.tensor([corrupted]), cache, metric)
            yield f"patched {name}", float(np.abs(getattr(found, name) - expected.numpy()).max())

    def head_scores(self) -> Iterator[tuple[str, float]]:
        """From the diagonals of their attention patterns, as in their demonstrations."""
        n = kinds.DIFFERENT
        found = kinds.score_heads(self.model, self.tokenizer, texts=2)
        sums = torch.zeros(3, self.config.n_layers, self.config.n_heads)
        for ids in kinds.random_texts(self.tokenizer, 0, 2, n):
            text = [VOCABULARY - 1, *ids * kinds.COPIES]
            for layer in range(self.config.n_layers):
                a = self.cached(text, f"blocks.{layer}.attn.hook_pattern")  # (H, T, T)
                # The first two entries of a diagonal are before its first repetition.
                copied = [a.diagonal(1 - k * n, 1, 2)[:, 2:] for k in range(1, kinds.COPIES)]
                total = sum((d.sum(-1) for d in copied), torch.zeros(len(a)))
                sums[0, layer] += total / (n * (kinds.COPIES - 1))
                sums[1, layer] += a.diagonal(-1, 1, 2).mean(-1)
                sums[2, layer] += a[:, 1:, 0].mean(-1)
        for kind, expected in zip(kinds.KINDS, (sums / 2).numpy(), strict=True):
            yield f"{kind} heads", float(np.abs(getattr(found, kind) - expected).max())


def _plan(part: str) -> Interventions:
    return Interventions.of([part])


def _set(head: int, value: Tensor | float, z: Tensor, hook: Any) -> Tensor:
    z[:, :, head] = value
    return z


def _all(value: Tensor | float, x: Tensor, hook: Any) -> Tensor:
    x[:] = value
    return x


def _hide(position: int, scores: Tensor, hook: Any) -> Tensor:
    scores[:, :, position + 1 :, position] = -torch.inf
    return scores


def _add(direction: Tensor, first: int, x: Tensor, hook: Any) -> Tensor:
    x[:, first:] += direction
    return x


@torch.inference_mode()
def main() -> int:
    """Print a line per intervention; 1 if one is too far off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    given = parser.parse_args()
    config = ModelConfig(VOCABULARY, 1024, given.width, given.heads, given.layers)
    comparison, worst = Comparison(config), 0.0
    for check in (
        comparison.ablations,
        comparison.steering,
        comparison.patches,
        comparison.head_scores,
    ):
        for name, difference in check():
            print(f"{name:24} {difference:.1e}", flush=True)
            worst = max(worst, difference)
    print(f"{'the largest':24} {worst:.1e}, the limit is {LIMIT:.0e}")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
