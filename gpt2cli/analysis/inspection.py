"""Everything `gpt2 inspect` shows about one text.

Plain arrays and strings, for whatever shows them: a terminal, a page, a picture, JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2cli.analysis.effects import Effect, effect
from gpt2cli.analysis.plain import plain
from gpt2cli.arrays import NDArray, are_numbers
from gpt2cli.errors import not_numbers
from gpt2cli.model import trace as insight
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.trace import Contributions, NormStatistics, Trace
from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that may come next; rank 1 is the most probable."""

    id: int
    text: str
    logit: float
    probability: float
    rank: int


@dataclass(frozen=True, slots=True)
class Lens:
    """What each layer would say, the embeddings being layer 0: its K best tokens everywhere.

    `target_probability` and `target_rank` are those of the token in question, after the last.
    """

    ids: NDArray  # (L + 1, N, K)
    texts: list[list[list[str]]]
    probabilities: NDArray  # (L + 1, N, K)
    target_probability: NDArray  # (L + 1,)
    target_rank: NDArray  # (L + 1,)


@dataclass(frozen=True, slots=True)
class Activations:
    """Lengths (L2 norms) of the vectors that each layer adds, and of the stream they add to."""

    stream: NDArray  # (L + 1, N)
    attention: NDArray  # (L, N)
    feed_forward: NDArray  # (L, N)


@dataclass(frozen=True, slots=True)
class Inspection:
    """All results, for the last N of T tokens; `first` is the position of the first of them.

    `attention` is (L, H, N, N), row by row what a token takes from each of the N, and
    `attention_before` (L, H, N) what it takes from all before them. Under interventions all that
    is what happens then, and `effect` says what they change.
    """

    first: int
    ids: list[int]
    texts: list[str]
    target: Choice
    next: list[Choice]
    lens: Lens
    contributions: Contributions
    activations: Activations
    norms: NormStatistics
    attention: NDArray
    attention_before: NDArray
    effect: Effect | None = None

    def as_dict(self, sections: Collection[str]) -> dict[str, Any]:
        """What JSON can hold, numbers to six digits: the tokens and the chosen sections."""
        tokens = [{"id": i, "text": text} for i, text in zip(self.ids, self.texts, strict=True)]
        data = {"first": self.first, "tokens": tokens, "target": self.target}
        data |= {name: getattr(self, name) for name in sections}
        if "attention" in data:
            data["attention_before"] = self.attention_before
        if self.effect is not None:
            data["effect"] = self.effect
        return {name: plain(value) for name, value in data.items()}


def inspect(
    model: GPT2,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    token: int | None = None,
    window: int = 64,
    top: int = 10,
    edits: Edits | None = None,
) -> Inspection:
    """Read `ids`, under `edits` if there are any, and measure what happens to the last `window`.

    The logit of `token` is taken apart, by default of the most probable one; `top` tokens
    are listed.
    """
    trace = insight.trace(model, ids, window, edits)
    logits = insight.lens(model, trace.stream[-1, -1])[: tokenizer.size]
    norms = insight.norm_statistics(model, trace)
    if not (are_numbers(logits) and are_numbers(norms.variance_in)):
        raise not_numbers("the model", len(ids))
    best = logits.topk(min(top, len(logits))).indices.tolist()
    target = _choice(tokenizer, logits, best[0] if token is None else token)
    shown = list(ids[-window:])
    first = len(ids) - len(shown)
    attention = trace.attention.cpu().numpy()
    return Inspection(
        first=first,
        ids=shown,
        texts=[tokenizer.show(i) for i in shown],
        target=target,
        next=[_choice(tokenizer, logits, i) for i in best],
        lens=_lens(model, tokenizer, trace, target.id),
        contributions=insight.contributions(model, trace, target.id),
        activations=_activations(trace),
        norms=norms,
        attention=attention[..., first:],
        attention_before=attention[..., :first].sum(-1),
        effect=effect(model, tokenizer, ids, edits, token=token, top=top) if edits else None,
    )


def _choice(tokenizer: Tokenizer, logits: Tensor, token_id: int) -> Choice:
    logit = logits[token_id]
    return Choice(
        token_id,
        tokenizer.show(token_id),
        float(logit),
        float(logits.softmax(-1)[token_id]),
        _rank(logits, token_id),
    )


def _rank(logits: Tensor, token_id: int) -> int:
    return 1 + int((logits > logits[token_id]).sum())


@torch.inference_mode()
def _lens(model: GPT2, tokenizer: Tokenizer, trace: Trace, target: int, listed: int = 3) -> Lens:
    """Layer by layer, because the logits of all N tokens and layers may be gigabytes."""
    tops, target_probability, target_rank = [], [], []
    for stream in trace.stream[::2]:
        logits = insight.lens(model, stream)[:, : tokenizer.size]  # (N, V)
        probabilities = logits.softmax(-1)
        tops.append(probabilities.topk(min(listed, tokenizer.size)))
        target_probability.append(float(probabilities[-1, target]))
        target_rank.append(_rank(logits[-1], target))
    ids = torch.stack([top.indices for top in tops]).cpu().numpy()
    names = {int(i): tokenizer.show(int(i)) for i in np.unique(ids)}
    return Lens(
        ids,
        [[[names[i] for i in place] for place in layer] for layer in ids.tolist()],
        torch.stack([top.values for top in tops]).cpu().numpy(),
        np.array(target_probability),
        np.array(target_rank),
    )


def _activations(trace: Trace) -> Activations:
    added = trace.added.norm(dim=-1).cpu().numpy()  # (2L, N)
    return Activations(trace.stream[::2].norm(dim=-1).cpu().numpy(), added[::2], added[1::2])
