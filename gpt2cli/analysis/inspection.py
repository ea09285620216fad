"""Everything `gpt2 inspect` shows about one text.

Plain arrays and strings, for whatever shows them: a terminal, a page, a picture, JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
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
from gpt2cli.model.trace import Contributions, Neurons, NormStatistics, Trace
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer

NEURONS = 5  # that are listed of each layer
LISTED = 3  # tokens at each place of the lens
_ROWS = 256  # of logits at once


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
class Embedding:
    """Lengths of the two vectors whose sum goes into the first layer, of the last token."""

    token: float
    position: float


@dataclass(frozen=True, slots=True)
class Versus:
    """Another token: how it stands, and what makes its logit.

    A part that adds more to the target than to this one speaks for the target. As JSON that is
    one object, the parts beside `target`.
    """

    target: Choice
    contributions: Contributions
    neurons: NDArray  # (L, K): what those of `Inspection.neurons` add to its logit


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
    embedding: Embedding
    neurons: Neurons
    versus: Versus | None = None
    effect: Effect | None = None

    def as_dict(self, sections: Collection[str]) -> dict[str, Any]:
        """What JSON can hold, numbers to six digits: the tokens and the chosen sections."""
        tokens = [{"id": i, "text": text} for i, text in zip(self.ids, self.texts, strict=True)]
        data = {"first": self.first, "tokens": tokens, "target": self.target}
        data |= {name: getattr(self, name) for name in sections}
        if "attention" in data:
            data["attention_before"] = self.attention_before
        if "neurons" in data:
            data["neurons"] = self._neurons()
        if self.versus is not None:
            data["versus"] = {"target": self.versus.target} | plain(self.versus.contributions)
        if self.effect is not None:
            data["effect"] = self.effect
        return {name: plain(value) for name, value in data.items()}

    def _neurons(self) -> list[list[dict[str, Any]]]:
        columns = {field.name: getattr(self.neurons, field.name) for field in fields(self.neurons)}
        if self.versus is not None:
            columns["versus"] = self.versus.neurons
        layers = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [
            [dict(zip(columns, neuron, strict=True)) for neuron in zip(*layer, strict=True)]
            for layer in layers
        ]


def inspect(
    model: GPT2,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    token: int | None = None,
    versus: int | None = None,
    window: int = 64,
    top: int = 10,
    edits: Edits | None = None,
) -> Inspection:
    """Read `ids`, under `edits` if there are any, and measure what happens to the last `window`.

    The logit of `token` is taken apart, by default of the most probable one, and that of `versus`;
    `top` tokens are listed.
    """
    trace = insight.trace(model, ids, window, edits)
    found = measure(model, tokenizer, trace, token=token, versus=versus, top=top)
    if not edits:
        return found
    return replace(found, effect=effect(model, tokenizer, ids, edits, token=token, top=top))


def measure(
    model: GPT2,
    tokenizer: Tokenizer,
    trace: Trace,
    *,
    token: int | None = None,
    versus: int | None = None,
    top: int = 10,
    neurons: int = NEURONS,
) -> Inspection:
    """The same of what was traced already; so many of the strongest neurons of a layer are listed.

    Raises `WeightsError` if a logit is not finite.
    """
    lasts = insight.lens(model, trace.stream[::2, -1])[:, : tokenizer.size]  # (L + 1, V)
    logits = _checked(lasts[-1], trace)
    norms = insight.norm_statistics(model, trace)
    if not are_numbers(norms.variance_in):
        raise not_numbers("the model", len(trace.ids))
    best = logits.topk(min(top, len(logits))).indices.tolist()
    target = _choice(tokenizer, logits, best[0] if token is None else token)
    shown = list(trace.ids[-trace.stream.shape[1] :])
    first = len(trace.ids) - len(shown)
    attention = trace.attention.cpu().numpy()
    wrote = insight.writers(model, trace)
    strongest = insight.neurons(model, trace, target.id, neurons)
    return Inspection(
        first=first,
        ids=shown,
        texts=[tokenizer.show(i) for i in shown],
        target=target,
        next=[_choice(tokenizer, logits, i) for i in best],
        lens=_lens(model, tokenizer, trace, target.id, lasts),
        contributions=insight.contributions(model, trace, target.id, wrote),
        activations=_activations(trace),
        norms=norms,
        attention=attention[..., first:],
        attention_before=attention[..., :first].sum(-1),
        embedding=Embedding(
            float(wrote.token_embedding.norm()), float(wrote.position_embedding.norm())
        ),
        neurons=strongest,
        versus=None
        if versus is None
        else Versus(
            _choice(tokenizer, logits, versus),
            insight.contributions(model, trace, versus, wrote),
            insight.neurons(model, trace, versus, neurons).logit,
        ),
    )


def final_logits(model: GPT2, tokenizer: Tokenizer, trace: Trace) -> Tensor:
    """Logits (V,) of the token after the last. Raises `WeightsError` if one is not finite."""
    return _checked(insight.lens(model, trace.stream[-1, -1])[: tokenizer.size], trace)


def _checked(logits: Tensor, trace: Trace) -> Tensor:
    if not are_numbers(logits):
        raise not_numbers("the model", len(trace.ids))
    return logits


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
def _lens(model: GPT2, tokenizer: Tokenizer, trace: Trace, target: int, lasts: Tensor) -> Lens:
    """`lasts` (L + 1, V) are the logits after the last token."""
    stream = trace.stream[::2]
    alone = [_best(lasts)] if stream.shape[1] == 1 else None
    seen = lens(model, tokenizer, stream) if alone is None else _seen(tokenizer, alone, stream)
    return Lens(
        seen.ids,
        seen.texts,
        seen.probabilities,
        lasts.softmax(-1)[:, target].cpu().numpy(),
        1 + (lasts > lasts[:, target, None]).sum(-1).cpu().numpy(),
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What M layers would say after N tokens: the K best."""

    ids: NDArray  # (M, N, K)
    texts: list[list[list[str]]]
    probabilities: NDArray  # (M, N, K)


@torch.inference_mode()
def lens(
    model: GPT2,
    tokenizer: Tokenizer,
    stream: Tensor,
    listed: int = LISTED,
    advance: Advance = lambda _: None,
) -> Seen:
    """The logit lens of streams (M, N, C), in pieces: all their logits may be gigabytes.

    `advance` is called after each piece.
    """
    pieces = []
    for rows in torch.split(stream.flatten(0, 1), _ROWS):
        pieces.append(_best(insight.lens(model, rows)[:, : tokenizer.size], listed))
        advance(1)
    return _seen(tokenizer, pieces, stream)


def _best(logits: Tensor, listed: int = LISTED) -> tuple[Tensor, Tensor]:
    """The best tokens of each row and their probabilities. (rows, V) → (rows, K) each"""
    top = logits.topk(min(listed, logits.shape[-1]))
    return top.indices, (top.values - logits.logsumexp(-1, keepdim=True)).exp()


def _seen(tokenizer: Tokenizer, pieces: Sequence[tuple[Tensor, Tensor]], stream: Tensor) -> Seen:
    ids, probabilities = (
        torch.cat(column).view(*stream.shape[:2], -1).cpu().numpy()
        for column in zip(*pieces, strict=True)
    )
    names = {i: tokenizer.show(i) for i in np.unique(ids).tolist()}
    texts = [[[names[i] for i in place] for place in layer] for layer in ids.tolist()]
    return Seen(ids, texts, probabilities)


def _activations(trace: Trace) -> Activations:
    added = trace.added.norm(dim=-1).cpu().numpy()  # (2L, N)
    return Activations(trace.stream[::2].norm(dim=-1).cpu().numpy(), added[::2], added[1::2])
