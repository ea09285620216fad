"""Activation patching: which activations of one prompt restore its answer in another.

A clean prompt has the model answer A, a corrupted one, of as many tokens, B. The corrupted one is
read again and again, each time with one activation replaced by what the clean prompt had there.
How much of the difference between the answers' logits that restores says how much of what matters
passes through that place: 1 is all of it, 0 nothing.

Vig et al. 2020 (arXiv:2004.12265); Meng et al. 2022, "causal tracing" (arXiv:2202.05262); Wang et
al. 2022 for the difference of logits (arXiv:2211.00593); Heimersheim & Nanda 2024, "How to use and
interpret activation patching" (arXiv:2404.15255), who call this direction denoising.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2cli.analysis.plain import plain
from gpt2cli.arrays import NDArray, are_numbers
from gpt2cli.errors import ContextError, UsageError, not_numbers
from gpt2cli.model.edits import Place
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.interventions import Where, record
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer

PLACES: dict[str, Place] = {
    "stream": "stream",
    "attention": "attention",
    "mlp": "feed_forward",
    "heads": "heads",
}
MAPS = tuple(PLACES)
_BATCH = 4096  # tokens that are read at once
_LEAST = 0.01  # a difference of logits, below which there is nothing to restore


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its text."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Two answers, and the logit of `answer` less that of `versus` after either prompt."""

    answer: Token
    versus: Token
    clean: float
    corrupted: float


@dataclass(frozen=True, slots=True)
class Patching:
    """How much of the difference each patch restores; a map that was not asked for is None.

    `stream` is what goes into a layer, at one position; `attention` and `mlp` are what these add
    to it there; `heads` is what one head mixes, at all positions.
    """

    clean: list[Token]
    corrupted: list[Token]
    answers: Answers
    stream: NDArray | None  # (L, T)
    attention: NDArray | None  # (L, T)
    mlp: NDArray | None  # (L, T)
    heads: NDArray | None  # (L, H)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, numbers to six digits, without the maps that are None."""
        found: dict[str, Any] = plain(self)
        return {name: value for name, value in found.items() if value is not None}


def check(model: GPT2, tokenizer: Tokenizer, clean: Sequence[int], corrupted: Sequence[int]) -> int:
    """The first position at which the prompts differ.

    Raises `UsageError` for prompts that cannot be compared token by token.
    """
    context_length = model.config.context_length
    if len(clean) != len(corrupted):
        shown = " and ".join("|".join(map(tokenizer.show, ids[:24])) for ids in (clean, corrupted))
        raise UsageError(
            f"both prompts must have as many tokens, and have {len(clean)} and {len(corrupted)}: "
            f"{shown}"
        )
    if len(clean) > context_length:
        raise ContextError(f"the prompts have {len(clean)} tokens, the context {context_length}")
    differing = (i for i, pair in enumerate(zip(clean, corrupted, strict=True)) if len({*pair}) > 1)
    if (first := next(differing, None)) is None:
        raise UsageError("the prompts are the same, so there is nothing to restore")
    return first


def count(model: GPT2, tokens: int, maps: Collection[str] = MAPS) -> int:
    """How often `patch` reads the prompt, if so many tokens come from where the prompts differ."""
    layers, heads = model.config.n_layers, model.config.n_heads
    return sum(layers * (heads if name == "heads" else tokens) for name in maps)


@torch.inference_mode()
def patch(
    model: GPT2,
    tokenizer: Tokenizer,
    clean: Sequence[int],
    corrupted: Sequence[int],
    *,
    answer: int | None = None,
    versus: int | None = None,
    maps: Collection[str] = MAPS,
    advance: Advance = lambda _: None,
) -> Patching:
    """Restore the clean prompt's answer in the corrupted one, place by place.

    By default `answer` is what is most probable after the clean prompt, and `versus` what is
    after the corrupted one. `advance` is called with the number of patches just done. Raises
    `UsageError` for prompts or answers between which there is nothing to restore.
    """
    first = check(model, tokenizer, clean, corrupted)
    answers = _answers(model, tokenizer, (clean, corrupted), (answer, versus))
    weight = model.token_embedding.weight
    towards = weight[answers.answer.id] - weight[answers.versus.id]
    layers = range(model.config.n_layers)
    streams = record(model, corrupted, [("stream", layer) for layer in layers])
    values = record(model, clean, [(PLACES[name], layer) for name in maps for layer in layers])

    def restored(name: str) -> NDArray | None:
        if name not in maps:
            return None
        masks, rows = _masks(model, name, len(clean), first), []
        for where in ((PLACES[name], layer) for layer in layers):
            found = []
            for mask in torch.split(masks, max(1, _BATCH // len(clean))):
                hidden = _read(model, streams["stream", where[1]], where, mask, values[where])
                found.append(hidden @ towards)
                advance(len(mask))
            rows.append(torch.cat(found))
        differences: NDArray = torch.stack(rows).float().cpu().numpy()  # (L, patches)
        shares = (differences - answers.corrupted) / (answers.clean - answers.corrupted)
        # Before the prompts differ a patch changes nothing.
        return shares if name == "heads" else np.pad(shares, ((0, 0), (first, 0)))

    return Patching(
        _tokens(tokenizer, clean), _tokens(tokenizer, corrupted), answers, *map(restored, MAPS)
    )


def _read(model: GPT2, stream: Tensor, where: Where, mask: Tensor, values: Tensor) -> Tensor:
    """The last token's state under each of several patches. → (patches, C)

    `stream` (T, C) goes into the layer of the patches: those below it need not be computed again.
    """

    def edit(place: Place, layer: int, x: Tensor) -> Tensor:
        return torch.where(mask, values, x) if (place, layer) == where else x

    x = stream.expand(len(mask), -1, -1)
    for block in islice(model.blocks, where[1], None):
        x = block(x, edit=edit)
    return model.final_norm(x[:, -1])  # type: ignore[no-any-return]


def _tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Token]:
    return [Token(i, tokenizer.show(i)) for i in ids]


def _masks(model: GPT2, name: str, tokens: int, first: int) -> Tensor:
    """What each patch replaces. → (patches, T or 1, C or 1)"""
    device = model.token_embedding.weight.device
    if name != "heads":
        return torch.eye(tokens, dtype=torch.bool, device=device)[first:, :, None]
    owners = torch.arange(model.config.emb_dim, device=device) // model.config.head_dim
    return (owners == torch.arange(model.config.n_heads, device=device)[:, None])[:, None]


def _answers(
    model: GPT2,
    tokenizer: Tokenizer,
    prompts: tuple[Sequence[int], Sequence[int]],
    tokens: tuple[int | None, int | None],
) -> Answers:
    """What is compared. Raises `UsageError` if there is nothing to restore."""
    after = [predictions(model, tokenizer, ids) for ids in prompts]
    answer, versus = (
        int(logits.argmax()) if token is None else token
        for logits, token in zip(after, tokens, strict=True)
    )
    if answer == versus:
        raise UsageError(
            f"answer and versus are both {tokenizer.show(answer)!r}; name two tokens between "
            "which the prompts decide",
            "answer",
            "versus",
        )
    clean, corrupted = (float(logits[answer] - logits[versus]) for logits in after)
    if abs(clean - corrupted) < _LEAST:
        raise UsageError(
            f"the prompts make no difference to {tokenizer.show(answer)!r} versus "
            f"{tokenizer.show(versus)!r}, so there is nothing to restore"
        )
    first, second = _tokens(tokenizer, (answer, versus))
    return Answers(first, second, clean, corrupted)


@torch.inference_mode()
def predictions(model: GPT2, tokenizer: Tokenizer, ids: Sequence[int]) -> Tensor:
    """Logits of the token after `ids`, (V,). Raises `WeightsError` if they are not finite."""
    rows = torch.tensor([ids], device=model.token_embedding.weight.device)
    logits = model.head(model.hidden(rows)[0, -1])[: tokenizer.size].float()
    if not are_numbers(logits):
        raise not_numbers("the model", len(ids))
    return logits


def spaced(model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], token: int) -> int | None:
    """The same word with a space before it, if that is one token and more probable after `ids`.

    Most words of a text begin with a space, which is easily forgotten.
    """
    text = tokenizer.show(token)
    found = tokenizer.encode(f" {text}", special=False, follows=True)
    if text[:1].isspace() or len(found) != 1:
        return None
    logits = predictions(model, tokenizer, ids)
    return found[0] if logits[found[0]] > logits[token] else None
