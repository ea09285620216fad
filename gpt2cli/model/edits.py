"""Changes to activations while a model reads: the one seam of every intervention.

The forward pass hands each of its results to an `Edit`, by the name of its place and the number
of its layer, and goes on with what that returns. So an edit may change activations or only look
at them, and without one nothing happens. The places of a layer, in the order of the computation,
each (…, T, C):

    stream        the residual stream that goes into the layer
    heads         what the heads mix, side by side, before the output matrix: D numbers each
    attention     what attention adds to the stream
    feed_forward  what feed-forward adds to the stream
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Place: TypeAlias = Literal["stream", "heads", "attention", "feed_forward"]
Edit: TypeAlias = Callable[[Place, int, Tensor], Tensor]
Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What was computed (…, T, C), and the positions of its tokens (…, T) → what goes on instead."""


def unedited(place: Place, layer: int, x: Tensor) -> Tensor:
    """The `Edit` that changes nothing."""
    return x


class Edits:
    """The changes of a run, by place and layer, and the positions that no later token sees."""

    def __init__(
        self,
        changes: Mapping[tuple[Place, int], Sequence[Change]] | None = None,
        unseen: Sequence[int] = (),
    ) -> None:
        self._changes, self._unseen = changes or {}, tuple(unseen)

    def at(self, positions: Tensor) -> Edit:
        """The changes to tokens at these positions. (…, T)"""
        return partial(self._edit, positions)

    def _edit(self, positions: Tensor, place: Place, layer: int, x: Tensor) -> Tensor:
        for change in self._changes.get((place, layer), ()):
            x = change(x, positions)
        return x

    def mask(self, mask: Tensor | None, positions: Tensor) -> Tensor | None:
        """An attention mask that hides the unseen positions too, except from themselves.

        `mask` is that of `CausalSelfAttention`; without one, each of the T tokens attends to those
        before it. (B, 1, T, S), positions (…, T) → (…, 1, T, S)
        """
        if not self._unseen:
            return mask
        query = positions[..., None, :, None]  # (…, 1, T, 1)
        attended = positions.shape[-1] if mask is None else mask.shape[-1]
        key = torch.arange(attended, device=positions.device)
        hidden = torch.zeros_like(key, dtype=torch.bool)
        for position in self._unseen:
            hidden = hidden | (key == position)
        hidden = hidden & (key < query)
        if mask is None:
            return ~hidden & (key <= query)
        return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, -torch.inf)
