"""The tokens of a vocabulary in arrays that are searched where they lie: nothing to load."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence

ABSENT = 2**32 - 1  # the place of an id that no token has


class TokenTable(Sequence[bytes]):
    """Tokens as bytes, in their order as such, each with an id.

    `text` is all of them one after the other, `ends` where each ends in it, `ids` their ids, and
    `places` where in that order the token of each id is, or `ABSENT`: arrays of 32 bits.
    """

    def __init__(
        self, text: bytes, ends: Sequence[int], ids: Sequence[int], places: Sequence[int]
    ) -> None:
        self.parts = text, ends, ids, places
        self._text, self._ends, self._ids, self._places = self.parts

    @classmethod
    def of(cls, ranks: Mapping[bytes, int]) -> TokenTable:
        """A table of some tokens and their ids."""
        tokens = sorted(ranks)
        ends, ids = array("I"), array("I")
        places = array("I", [ABSENT]) * (1 + max(ranks.values(), default=-1))
        end = 0
        for place, token in enumerate(tokens):
            end += len(token)
            ends.append(end)
            ids.append(ranks[token])
            places[ranks[token]] = place
        return cls(b"".join(tokens), ends, ids, places)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: int) -> bytes:  # type: ignore[override]  # slices have no use
        return self._text[self._ends[place - 1] if place else 0 : self._ends[place]]

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return len(self._places)

    def token(self, token_id: int) -> bytes:
        """The token of an id. Raises `KeyError` if there is none."""
        place = self._places[token_id] if 0 <= token_id < len(self._places) else ABSENT
        if place == ABSENT:
            raise KeyError(token_id)
        return self[place]

    def within(self, text: bytes) -> dict[bytes, int]:
        """The tokens that a text contains anywhere, and their ids."""
        found: dict[bytes, int] = {}
        for begin in range(len(text)):
            place = 0
            for end in range(begin + 1, len(text) + 1):
                part = text[begin:end]
                place = bisect_left(self, part, place)
                if place == len(self) or not (token := self[place]).startswith(part):
                    break  # no token begins so
                if token == part:
                    found[part] = self._ids[place]
        return found

    def ranks(self) -> dict[bytes, int]:
        """All tokens and their ids."""
        begins = [0, *self._ends]
        tokens = (self._text[a:b] for a, b in zip(begins, self._ends, strict=False))
        return dict(zip(tokens, self._ids, strict=True))
