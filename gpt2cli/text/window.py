"""Which tokens of a text a model attends to: all that fit, else the newest."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2cli.errors import ContextError, UsageError

OVERFLOW = ("slide", "error")  # what may become of a prompt that leaves no room for its tokens


def slide(ids: Sequence[int], context_length: int) -> list[int]:
    """The newest tokens, with room to continue: a full window drops its oldest quarter.

    Positions are learned, so what remains must be read again. Doing that for a quarter of
    the window at a time keeps the cost per token flat: three tokens of prefill for each.
    """
    return list(ids[-(context_length - context_length // 4) :])


def fit_prompt(ids: Sequence[int], context_length: int) -> list[int]:
    """The prompt as the model will read it: whole if it fits, else its newest part."""
    return list(ids) if len(ids) <= context_length else slide(ids, context_length)


def check_prompt(ids: Sequence[int], context_length: int) -> None:
    """Raise `UsageError` for a prompt that is empty or does not fit the context."""
    if not ids:
        raise UsageError("the prompt is empty")
    if len(ids) > context_length:
        raise ContextError(f"the prompt has {len(ids)} tokens, the context only {context_length}")
