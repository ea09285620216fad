"""Which tokens lie in which page of a KV cache, and whose they are; the numbers are elsewhere.

A page holds the keys and values of 32 tokens. A sequence has a table of pages: a fork shares those
of its parent until one of them writes, and a sequence finds full pages that others have read by
what they hold and what precedes it. So memory grows with the tokens held, and what many texts have
in common is read and stored once. Kwon et al. 2023, "PagedAttention", arXiv:2309.06180.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

PAGE = 32  # tokens; the native engine lays out keys in panels of this length

_Key = tuple[int, tuple[int, ...]]  # what precedes a page, as one number, and its tokens


class Chunk(NamedTuple):
    """Tokens for one sequence to read after the first `start` that it holds; it forgets the rest.

    Logits are wanted after the last of `ids`, or after `every` one.
    """

    sequence: int
    start: int
    ids: Sequence[int]
    every: bool = False


class OutOfPages(Exception):
    """A read needs more pages than are free; nothing has been changed."""


def pages_for(tokens: int) -> int:
    """The number of pages that hold so many tokens."""
    return -(-tokens // PAGE)


def room_for(texts: int, tokens: int) -> int:
    """Tokens of a KV cache in which so many forks of a text can grow to `tokens` each.

    Each needs a page more for a moment, when it parts from the others.
    """
    return texts * (pages_for(tokens) + (texts > 1)) * PAGE


@dataclass(slots=True)
class _Sequence:
    ids: list[int] = field(default_factory=list)  # that have been read
    pages: list[int] = field(default_factory=list)  # at least as many as these ids need
    names: list[int] = field(default_factory=list)  # of the text up to the end of each full page


class Pages:
    """The tables of all sequences over `count` pages.

    Full pages that no sequence holds any more are kept for others to find, at most `kept` of them.
    """

    def __init__(self, count: int, kept: int) -> None:
        self.count = count
        self._most_kept = kept
        self._free = list(range(count))  # a heap: low pages first, so that few are ever touched
        self._users: Counter[int] = Counter()
        self._sequences: dict[int, _Sequence] = {}
        self._opened = 0
        self._index: dict[_Key, tuple[int, int]] = {}  # page and name
        self._keys: dict[int, _Key] = {}  # of the pages in the index
        self._kept: dict[int, None] = {}  # in the index and without a user, the oldest first
        self._named = 0

    @property
    def free(self) -> int:
        """The pages that can still be taken."""
        return len(self._free) + len(self._kept)

    def open(self) -> int:
        """A new, empty sequence."""
        return self._add(_Sequence())

    def fork(self, sequence: int) -> int:
        """A new sequence that holds the same tokens, in the same pages."""
        parent = self._sequences[sequence]
        self._users.update(parent.pages)
        return self._add(
            replace(parent, ids=[*parent.ids], pages=[*parent.pages], names=[*parent.names])
        )

    def close(self, sequence: int) -> None:
        """Forget a sequence."""
        self._drop_pages(self._sequences.pop(sequence), 0)

    def ids(self, sequence: int) -> list[int]:
        """The tokens that a sequence holds."""
        return self._sequences[sequence].ids

    def table(self, sequence: int) -> list[int]:
        """The pages of a sequence, in the order of its tokens."""
        return self._sequences[sequence].pages

    def share(self, sequence: int, ids: Sequence[int]) -> int:
        """Hold more of `ids` without reading, from full pages that are known. → the tokens held

        The sequence must hold the first of `ids`. The last one is always left to read.
        """
        it = self._sequences[sequence]
        while (len(it.ids) + PAGE) < len(ids) and len(it.ids) % PAGE == 0:
            begin = len(it.ids)
            found = self._index.get(self._key(it, begin // PAGE, ids[begin : begin + PAGE]))
            if found is None:
                break
            page, name = found
            self._drop_pages(it, begin // PAGE)
            self._use(page)
            it.pages.append(page)
            it.names.append(name)
            it.ids += ids[begin : begin + PAGE]
        return len(it.ids)

    def prepare(self, chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
        """Take the pages that these chunks will be written to. → pages to copy before, (from, to)

        Raises `OutOfPages` if there are not enough, `ValueError` for a chunk that leaves a gap, is
        empty, or follows another of its sequence.
        """
        self._check(chunks)
        if sum(map(self._wanted, chunks)) > self.free:
            raise OutOfPages
        for chunk in chunks:
            it = self._sequences[chunk.sequence]
            del it.ids[chunk.start :]
            del it.names[chunk.start // PAGE :]
            self._drop_pages(it, pages_for(chunk.start))
        return [copy for chunk in chunks for copy in self._take_for(chunk)]

    def commit(self, chunks: Sequence[Chunk]) -> None:
        """Note that these chunks have been read: their full pages can be found from now on."""
        for chunk in chunks:
            it = self._sequences[chunk.sequence]
            it.ids += chunk.ids
            for i in range(len(it.names), len(it.ids) // PAGE):
                self._name(it, i)

    def _add(self, sequence: _Sequence) -> int:
        self._sequences[self._opened] = sequence
        self._opened += 1
        return self._opened - 1

    def _check(self, chunks: Sequence[Chunk]) -> None:
        if len({chunk.sequence for chunk in chunks}) < len(chunks):
            raise ValueError("a sequence can read only one chunk at a time")
        for chunk in chunks:
            if not 0 <= chunk.start <= len(self._sequences[chunk.sequence].ids):
                raise ValueError(f"a sequence cannot continue at {chunk.start}, which is not read")
            if not len(chunk.ids):
                raise ValueError("a chunk must not be empty")

    def _wanted(self, chunk: Chunk) -> int:
        """How many more pages a chunk takes than it gives back, at most."""
        table, kept = self._sequences[chunk.sequence].pages, pages_for(chunk.start)
        given = sum(self._users[page] == 1 for page in table[kept:])
        shared = chunk.start % PAGE > 0 and self._users[table[kept - 1]] > 1
        return pages_for(chunk.start + len(chunk.ids)) - kept - given + shared

    def _take_for(self, chunk: Chunk) -> list[tuple[int, int]]:
        """Make room for a chunk at the end of its sequence. → pages to copy, (from, to)"""
        it, copies = self._sequences[chunk.sequence], []
        if chunk.start % PAGE:
            page = it.pages[-1]
            if self._users[page] > 1:
                it.pages[-1] = self._take()
                self._release(page)
                copies.append((page, it.pages[-1]))
            else:
                self._unindex(page)
        while len(it.pages) < pages_for(chunk.start + len(chunk.ids)):
            it.pages.append(self._take())
        return copies

    def _key(self, it: _Sequence, i: int, ids: Sequence[int]) -> _Key:
        return (it.names[i - 1] if i else 0, tuple(ids))

    def _name(self, it: _Sequence, i: int) -> None:
        """Put full page i into the index, or take the one there that holds the same."""
        key, page = self._key(it, i, it.ids[i * PAGE : (i + 1) * PAGE]), it.pages[i]
        known = self._index.get(key)
        if known is None:
            self._named += 1
            self._unindex(page)
            self._index[key] = known = (page, self._named)
            self._keys[page] = key
        elif known[0] != page:
            self._use(known[0])
            self._release(page)
        it.pages[i] = known[0]
        it.names.append(known[1])

    def _use(self, page: int) -> None:
        self._kept.pop(page, None)
        self._users[page] += 1

    def _take(self) -> int:
        if not self._free:
            self._evict()
        page = heapq.heappop(self._free)
        self._users[page] = 1
        return page

    def _drop_pages(self, it: _Sequence, first: int) -> None:
        for page in reversed(it.pages[first:]):  # a beginning is worth keeping longest
            self._release(page)
        del it.pages[first:]

    def _release(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page not in self._keys:
            heapq.heappush(self._free, page)
            return
        self._kept[page] = None
        if len(self._kept) > self._most_kept:
            self._evict()

    def _evict(self) -> None:
        """Give up the page that has been without a user for longest."""
        page = next(iter(self._kept))
        del self._kept[page]
        self._unindex(page)
        heapq.heappush(self._free, page)

    def _unindex(self, page: int) -> None:
        if (key := self._keys.pop(page, None)) is not None:
            del self._index[key]
