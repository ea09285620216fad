"""What interventions do to a forward pass: ablation, attention knockout, steering.

Ablation sets what a part computes to zero, or to its mean over a reference text, which removes
what the part says about this text and keeps what it always says: Wang et al. 2022,
"Interpretability in the Wild" (arXiv:2211.00593); heads set to zero: Michel et al. 2019
(arXiv:1905.10650). What later tokens take from a position is cut off in all layers: attention
knockout, Geva et al. 2023 (arXiv:2304.14767). Steering adds the difference of two texts' streams,
Turner et al. 2023, "Activation Addition" (arXiv:2308.10248), to all tokens from a position on, as
Rimsky et al. 2023 do (arXiv:2312.06681).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from gpt2cli.config.interventions import Interventions, Part, Steering
from gpt2cli.model.edits import Change, Edits, Place
from gpt2cli.model.gpt2 import GPT2

Where: TypeAlias = tuple[Place, int]


class Reader(Protocol):
    """What makes token ids of the texts in a plan: a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def beginning(self) -> int:
        """The id of end-of-text. Raises `UsageError` if there is none."""


def edits(model: GPT2, plan: Interventions, tokenizer: Reader) -> Edits:
    """The changes that a forward pass of `model` can carry out.

    Raises `UsageError` for what the model has not.
    """
    plan.check(model.config)
    parts = [part for part in plan.ablate if part.kind != "position"]
    wheres = [where for part in parts for where in _wheres(part)]
    average = {}
    if plan.ablate_with == "mean" and wheres:
        ids = tokenizer.encode(plan.reference or "") or [tokenizer.beginning()]
        average = means(model, ids, set(wheres))
    changes: dict[Where, list[Change]] = {}
    for part in parts:
        for where in _wheres(part):
            numbers = _numbers_of(part, model)
            changes.setdefault(where, []).append(_replacing(numbers, average.get(where)))
    for steering in plan.steer:
        direction = _direction(model, steering, tokenizer)
        change = _adding(steering.strength * direction, steering.first)
        changes.setdefault(("stream", steering.layer), []).append(change)
    return Edits(changes, [part.number for part in plan.ablate if part.kind == "position"])


def _wheres(part: Part) -> Iterator[Where]:
    """Where a part's results are handed to edits."""
    if part.kind == "head":
        yield "heads", part.number
    if part.kind in ("attention", "layer"):
        yield "attention", part.number
    if part.kind in ("mlp", "layer"):
        yield "feed_forward", part.number


def _numbers_of(part: Part, model: GPT2) -> Tensor:
    """Which of the C numbers there are the part's. (C,) bool"""
    device = model.token_embedding.weight.device
    numbers = torch.arange(model.config.emb_dim, device=device)
    if part.head is None:
        return torch.ones_like(numbers, dtype=torch.bool)
    return numbers // model.config.head_dim == part.head


def _replacing(numbers: Tensor, values: Tensor | None) -> Change:
    """Zero, or `values` (C,), in place of the chosen `numbers` (C,)."""
    if values is None:
        return lambda x, positions: x.masked_fill(numbers, 0)
    return lambda x, positions: torch.where(numbers, values, x)


def _adding(direction: Tensor, first: int) -> Change:
    """`direction` (C,) in addition, at all positions from `first` on."""
    return lambda x, positions: torch.where((positions >= first)[..., None], x + direction, x)


def _direction(model: GPT2, steering: Steering, tokenizer: Reader) -> Tensor:
    """From one text's stream at its last token to the other's. → (C,)"""
    where: Where = ("stream", steering.layer)
    ends = []
    for text in (steering.towards, steering.away):
        ids = [tokenizer.beginning(), *tokenizer.encode(text)][-model.config.context_length :]
        ends.append(record(model, ids, [where])[where][-1])
    return ends[0] - ends[1]


@torch.inference_mode()
def record(model: GPT2, ids: Sequence[int], wheres: Iterable[Where]) -> dict[Where, Tensor]:
    """What a run without changes computes at some places. → (T, C) each"""
    found: dict[Where, Tensor] = {}

    def keeping(where: Where) -> Change:
        def look(x: Tensor, positions: Tensor) -> Tensor:
            found[where] = x[0]
            return x

        return look

    device = model.token_embedding.weight.device
    model.hidden(
        torch.tensor([ids], device=device),
        edits=Edits({where: [keeping(where)] for where in wheres}),
    )
    return found


def means(model: GPT2, ids: Sequence[int], wheres: Collection[Where]) -> dict[Where, Tensor]:
    """The mean over all tokens of a text, read in pieces as long as the context. → (C,) each"""
    step = model.config.context_length
    total = dict.fromkeys(wheres, torch.zeros((), device=model.token_embedding.weight.device))
    for begin in range(0, len(ids), step):
        for where, x in record(model, ids[begin : begin + step], wheres).items():
            total[where] = total[where] + x.float().sum(0)
    dtype = model.token_embedding.weight.dtype
    return {where: (x / len(ids)).to(dtype) for where, x in total.items()}
