"""Documents as rows of one context each: long ones cut into windows, short ones packed together.

Letters as in `model`: B rows of T + 1 tokens, of which each but the first is to be predicted from
those before it. Short documents are put together by best fit, the longest first, each into the
fullest row that has room (Ding et al. 2024, arXiv:2404.10830). In a row they have segments of
their own, so that none sees another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.errors import UsageError
from gpt2cli.training.tokens import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B rows of tokens, in the host's memory.

    `mask` says which of `ids[:, 1:]` are to be learned, `segments` which document each of
    `ids[:, :-1]` belongs to, numbered from 0 in each row. None stands for all, and for one
    document in each row.
    """

    ids: NDArray  # (B, T + 1) int64
    mask: NDArray | None = None  # (B, T) bool
    segments: NDArray | None = None  # (B, T) int32

    @property
    def targets(self) -> int:
        """How many tokens are to be learned."""
        B, width = self.ids.shape
        return B * (width - 1) if self.mask is None else int(self.mask.sum())

    def micro(self, size: int) -> Iterator[Batch]:
        """The same rows in batches of at most `size`."""
        for begin in range(0, len(self.ids), size):
            span = slice(begin, begin + size)
            mask, segments = (None if a is None else a[span] for a in (self.mask, self.segments))
            yield Batch(self.ids[span], mask, segments)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """R rows: row i is made of the pieces `first[i]` to `first[i + 1]` of `ids`, in this order.

    Piece j is `ids[begin[j] : begin[j] + length[j]]`. Its first token is only read, and so are
    `unlearned[j]` more.
    """

    ids: NDArray  # (N,) of `Tokens`
    context_length: int
    first: NDArray  # (R + 1,)
    begin: NDArray  # (P,)
    length: NDArray  # (P,)
    unlearned: NDArray  # (P,)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.first) - 1

    @property
    def targets(self) -> NDArray:
        """How many tokens of each row are to be learned. (R,)"""
        return np.add.reduceat(self.length - 1 - self.unlearned, self.first[:-1])

    @property
    def padding(self) -> float:
        """The share of all rows that holds no token."""
        return float(1 - self.length.sum() / (len(self) * (self.context_length + 1)))

    def batch(self, rows: Sequence[int] | NDArray) -> Batch:
        """Some rows, filled up with end-of-text."""
        B, T = len(rows), self.context_length
        ids = np.full((B, T + 1), self.ids[0], np.int64)
        mask = np.zeros((B, T), bool)
        segments = np.zeros((B, T), np.int32)
        for row, own_ids, own_mask, own_segments in zip(rows, ids, mask, segments, strict=True):
            at = 0
            for number, j in enumerate(range(self.first[row], self.first[row + 1])):
                begin, end = self.begin[j], at + self.length[j]
                own_ids[at:end] = self.ids[begin : begin + self.length[j]]
                own_mask[at + self.unlearned[j] : end - 1] = True
                own_segments[at:] = number
                at = end
            own_segments[at:] += 1  # padding, which is no document's
        is_packed = bool((np.diff(self.first)[rows] > 1).any())
        # Padding after a row's only document is in nobody's past.
        return Batch(ids, None if mask.all() else mask, segments if is_packed else None)


def pack(
    tokens: Tokens, documents: NDArray, context_length: int, *, mask_prompts: bool = True
) -> Rows:
    """Rows in which every token of the documents is to be learned once, but for what is masked.

    What has nothing before it in its document cannot be learned: only the first token of a
    prompt. Prompts are masked unless asked otherwise. Raises `UsageError` if nothing remains.
    """
    width = context_length + 1
    begin, length, unlearned = _windows(tokens, documents, width, mask_prompts)
    if not len(begin):
        raise UsageError("there is no token to learn; give a longer text")
    row = _best_fit(length, width)
    order = np.argsort(row, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(row))])
    return Rows(tokens.ids, context_length, first, begin[order], length[order], unlearned[order])


def _windows(
    tokens: Tokens, documents: NDArray, width: int, mask_prompts: bool
) -> tuple[NDArray, NDArray, NDArray]:
    """Begin, length and unlearned tokens of all windows; each begins with the last one's end."""
    prompts, end = tokens.prompts[documents], tokens.bounds[documents + 1]
    begin = tokens.bounds[documents] - (prompts == 0)  # with the end-of-text before it
    learned = np.maximum(begin + 1, tokens.bounds[documents] + prompts if mask_prompts else 0)
    # Of a prompt that is too long the end is read, if all of the completion fits.
    begin = np.where(end - learned < width, np.maximum(begin, end - width), begin)
    counts = -(-(end - begin - 1) // (width - 1))
    which = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = begin[which] + number * (width - 1)
    length = np.minimum(width, end[which] - begin)
    unlearned = np.clip(learned[which] - begin - 1, 0, length - 1)
    kept = unlearned < length - 1
    return begin[kept], length[kept], unlearned[kept]


def _best_fit(lengths: NDArray, width: int) -> NDArray:
    """The row of each piece, at most `width` tokens in a row. (P,) → (P,)"""
    rows = np.empty(len(lengths), np.int64)
    whole = lengths == width
    count = int(whole.sum())
    rows[whole] = np.arange(count)
    with_room: list[list[int]] = [[] for _ in range(width)]  # rows by the room that they have
    rooms = 0  # bit n says that a row has room for n tokens
    others = np.flatnonzero(~whole)
    for piece in others[np.argsort(-lengths[others], kind="stable")].tolist():
        length = int(lengths[piece])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            rooms &= ~(not with_room[room] and 1 << room)
        else:
            room, row, count = width, count, count + 1
        rows[piece] = row
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows
