"""What the page is told of tokens, of what may come next, and of the model."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import GPT2CLIError
from gpt2cli.sampling.rules import largest_ids
from gpt2cli.sampling.tail import tail
from gpt2cli.serving.asked import MOST_PATCHES
from gpt2cli.serving.http.service import MOST_TEXTS

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.arrays import NDArray
    from gpt2cli.generation.request import ChosenLogprob
    from gpt2cli.sampling.sampler import Stage
    from gpt2cli.text.tokenizer import Tokenizer

MOST_CANDIDATES = 1000


def named(token_id: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token's `id` and `text`, and its `bytes` in base64 where the text does not say them."""
    data = tokenizer.decode_bytes([token_id])
    try:
        return {"id": token_id, "text": data.decode()}
    except UnicodeDecodeError:
        encoded = b64encode(data).decode()
        return {"id": token_id, "text": data.decode(errors="replace"), "bytes": encoded}


def judged(token_id: int, found: ChosenLogprob | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """The same, and what the model thought of it; nothing for a first token."""
    top = found.top if found else ()
    return named(token_id, tokenizer) | {
        "logprob": found and found.logprob,
        "rank": found and found.rank,
        "top": [named(one.id, tokenizer) | {"logprob": one.logprob} for one in top],
    }


def candidates(
    logits: NDArray, top: int, ids: Sequence[int], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The `top` best tokens by their logits, and what is known of all together. (V,)

    `text` are those of `ids`, the text so far, that are not among them: rules on the past change
    what they weigh. `rest` are all others in groups; see `sampling.tail`.
    """
    best, exact = largest_ids(logits, top), logits.astype(np.float64)
    weights = np.exp(exact - exact.max())
    total = weights.sum()
    log_total = float(np.log(total) + exact.max())
    past = sorted({i for i in ids if i < len(logits)}.difference(best))

    def listed(chosen: Sequence[int]) -> list[dict[str, Any]]:
        return [named(i, tokenizer) | {"logit": float(exact[i])} for i in chosen]

    return {
        "candidates": listed(best),
        "text": listed(past),
        "rest": tail(logits, [*best, *past]),
        "read": len(ids),
        "log_total": log_total,
        "entropy": max(0.0, log_total - float((weights / total) @ exact)),
        "size": len(logits),
    }


def stage_of(stage: Stage, tokenizer: Tokenizer) -> dict[str, Any]:
    """The effect of a rule on the candidates."""
    top = [named(i, tokenizer) | {"before": b, "after": a} for i, b, a in stage.top]
    return {"rule": stage.rule, "candidates": stage.candidates, "top": top}


def describe(model: LoadedModel) -> dict[str, Any]:
    """What the page needs to know of a model."""
    names = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
    return {
        "name": model.name,
        "description": model.describe(),
        "config": {name: getattr(model.config, name) for name in names},
        "size": model.tokenizer.size,
        "end_of_text": model.tokenizer.end_of_text,
        "sampling": asdict(model.sampling),
        "facts": model.facts(),
        "unchangeable": _unchangeable(model),
        "limits": {
            "candidates": MOST_CANDIDATES,
            "texts": MOST_TEXTS,
            "patches": MOST_PATCHES,
        },
    }


def _unchangeable(model: LoadedModel) -> str | None:
    """Why nothing can be changed inside a model; None if it can."""
    if find_spec("torch") is None:
        return "PyTorch, which alone can change a model inside, is not installed"
    try:
        model.under(Interventions())
    except GPT2CLIError as error:
        return str(error)
    return None
