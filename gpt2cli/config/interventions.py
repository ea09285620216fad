"""What to change inside a model while it reads: parts switched off, and directions added.

Plain data, for a command line, a page or a file of JSON alike; `model.interventions` makes of it
what a forward pass can carry out.

Layers, heads and positions count from 0, and a head has the name that `gpt2 inspect` gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpt2cli.config.fields import build, coerce, require
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError, did_you_mean

STRONGEST = 1_000_000  # steering: what is more may leave the numbers that there are
ABLATE_WITH = ("zero", "mean")
KINDS = ("attention", "mlp", "layer", "position")


@dataclass(frozen=True, slots=True)
class Part:
    """What can be switched off, by name.

    5.6         head 6 of layer 5
    attention.5 all that attention adds in layer 5, its bias included
    mlp.5       all that feed-forward adds there
    layer.5     both: the stream leaves the layer as it went in
    position.3  what later tokens take from the token at position 3, in all layers and heads
    """

    kind: str  # "head", or one of `KINDS`
    number: int  # of the layer; of the position
    head: int | None = None

    @classmethod
    def parse(cls, name: str) -> Part:
        """A part by its name. Raises `UsageError` for what is none."""
        if match := re.fullmatch(r"(\d{1,9})\.(\d{1,9})", name.strip(), re.ASCII):
            return cls("head", int(match[1]), int(match[2]))
        kind, _, number = name.strip().rpartition(".")
        if kind in KINDS and re.fullmatch(r"\d{1,9}", number, re.ASCII):
            return cls(kind, int(number))
        raise UsageError(
            f"cannot ablate {name!r}: give a head as 5.6 (head 6 of layer 5), or attention.5, "
            f"mlp.5, layer.5 or position.3{did_you_mean(kind, KINDS)}"
        )

    def __str__(self) -> str:
        return f"{self.number if self.kind == 'head' else self.kind}.{self._last}"

    @property
    def _last(self) -> int | None:
        return self.head if self.kind == "head" else self.number

    def check(self, config: ModelConfig) -> None:
        """Raise `UsageError` if a model of this size has no such part."""
        count = config.context_length if self.kind == "position" else config.n_layers
        if self.number >= count:
            name = "positions" if self.kind == "position" else "layers"
            raise UsageError(f"there is no {self._said}: {name} are 0 to {count - 1}")
        if self.head is not None and self.head >= config.n_heads:
            raise UsageError(
                f"there is no {self._said}: the heads of a layer are 0 to {config.n_heads - 1}"
            )

    @property
    def _said(self) -> str:
        return f"head {self}" if self.kind == "head" else str(self)


@dataclass(frozen=True, slots=True)
class Steering:
    """A direction to add: from what the model makes of one text to what it makes of another.

    `strength` times the difference of the streams that go into `layer` at the last tokens of
    `towards` and `away`, each read after end-of-text, is added there from position `first` on.
    """

    towards: str
    away: str
    layer: int
    strength: float = 1.0
    first: int = 0

    def __post_init__(self) -> None:
        rule = f"from -{STRONGEST:,} to {STRONGEST:,}"
        require(abs(self.strength) <= STRONGEST, "strength", self.strength, rule)
        require(self.first >= 0, "first", self.first, "at least 0")
        require(self.layer >= 0, "layer", self.layer, "at least 0")

    def check(self, config: ModelConfig) -> None:
        """Raise `UsageError` if a model of this size has no such layer."""
        if self.layer >= config.n_layers:
            raise UsageError(
                f"cannot steer in layer {self.layer}: layers are 0 to {config.n_layers - 1}"
            )


@dataclass(frozen=True, slots=True)
class Interventions:
    """All changes of a run; none by default.

    What is ablated becomes zero, or with `ablate_with` "mean" its mean over all tokens of
    `reference`, a text, in a run without changes. A position is only ever hidden.
    """

    ablate: tuple[Part, ...] = ()
    ablate_with: str = ABLATE_WITH[0]
    reference: str | None = None
    steer: tuple[Steering, ...] = ()

    def __post_init__(self) -> None:
        names = " or ".join(ABLATE_WITH)
        require(self.ablate_with in ABLATE_WITH, "ablate_with", self.ablate_with, names)

    @classmethod
    def of(
        cls,
        ablate: Iterable[str] = (),
        ablate_with: str = ABLATE_WITH[0],
        reference: str | None = None,
        steer: Iterable[Mapping[str, Any]] = (),
    ) -> Interventions:
        """The same from what JSON can hold. Raises `UsageError` for what is none."""
        names = coerce(list(ablate), "tuple[str, ...]", "ablate")
        return cls(
            tuple(dict.fromkeys(map(Part.parse, names))),
            coerce(ablate_with, "str", "ablate_with"),
            coerce(reference, "str | None", "reference"),
            tuple(build(Steering, one, "steer") for one in steer),
        )

    def __bool__(self) -> bool:
        return bool(self.ablate or self.steer)

    def __str__(self) -> str:
        """As the end of "bard …", for people."""
        parts = ", ".join(map(str, self.ablate))
        layers = ", ".join(str(steering.layer) for steering in self.steer)
        said = [f"without {parts}" if parts else "", f"steered in layer {layers}" if layers else ""]
        return " and ".join(filter(None, said))

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, and `of` takes."""
        return {
            "ablate": list(map(str, self.ablate)),
            "ablate_with": self.ablate_with,
            "reference": self.reference,
            "steer": list(map(asdict, self.steer)),
        }

    @property
    def names_positions(self) -> bool:
        """Whether it matters where a token stands, so that a text must not slide."""
        return any(part.kind == "position" for part in self.ablate) or any(
            steering.first for steering in self.steer
        )

    def check(self, config: ModelConfig, tokens: int | None = None) -> None:
        """Raise `UsageError` for what a model of this size, or a text of `tokens`, has not."""
        for part in self.ablate:
            part.check(config)
        for steering in self.steer:
            steering.check(config)
        if self.ablate_with == "mean" and self.reference is None:
            raise UsageError(
                "ablate_with mean needs a reference, the text to take it over",
                "ablate_with",
                "reference",
            )
        for part in self.ablate:
            if part.kind == "position" and tokens is not None and part.number >= tokens:
                count = f"{tokens} tokens" if tokens > 1 else "1 token"
                raise UsageError(f"there is no {part}: the text has {count}, from 0")
