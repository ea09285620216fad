"""What interventions do to the predictions after a text: before and after, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2cli.analysis.plain import plain
from gpt2cli.arrays import are_numbers
from gpt2cli.errors import not_numbers
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Standing:
    """How a token stands among all that may come next; rank 1 is the most probable."""

    logit: float
    probability: float
    rank: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A token that may come next, before and after."""

    id: int
    text: str
    before: Standing
    after: Standing


@dataclass(frozen=True, slots=True)
class Effect:
    """The tokens that are most probable before or after, by the larger of both probabilities.

    `kl` is the divergence KL(before ‖ after) of all predictions, in bits.
    """

    kl: float
    tokens: list[Moved]

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, numbers to six digits."""
        found: dict[str, Any] = plain(self)
        return found


@torch.inference_mode()
def effect(
    model: GPT2,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    edits: Edits,
    *,
    token: int | None = None,
    top: int = 10,
) -> Effect:
    """What `edits` change in the prediction after `ids`.

    The `top` tokens before and the `top` after are listed, and `token`. Raises `WeightsError` if
    a logit is not finite.
    """
    rows = torch.tensor([ids], device=model.token_embedding.weight.device)
    before, after = (
        model.head(model.hidden(rows, edits=changes)[0, -1])[: tokenizer.size].float()
        for changes in (None, edits)
    )
    if not (are_numbers(before) and are_numbers(after)):
        raise not_numbers("the model", len(ids))
    return compare(tokenizer, before, after, token=token, top=top)


@torch.inference_mode()
def compare(
    tokenizer: Tokenizer, before: Tensor, after: Tensor, *, token: int | None = None, top: int = 10
) -> Effect:
    """The same of logits (V,) that are known already."""
    best = (logits.topk(min(top, len(logits))).indices.tolist() for logits in (before, after))
    listed = set().union(*best, () if token is None else (token,))
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    moved = [
        Moved(i, tokenizer.show(i), _standing(before, p, i), _standing(after, q, i)) for i in listed
    ]
    moved.sort(key=lambda m: (-max(m.before.probability, m.after.probability), m.id))
    return Effect(float((p.exp() * (p - q)).sum()) / math.log(2), moved)


def _standing(logits: Tensor, logprobs: Tensor, token: int) -> Standing:
    logit = logits[token]
    rank = 1 + int((logits > logit).sum())
    return Standing(float(logit), math.exp(float(logprobs[token])), rank)
