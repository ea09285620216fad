"""What a record holds, whoever wrote it, and how its fields are read: they are untrusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import UsageError, shown
from gpt2cli.serving.choices import Answer

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.request import GenerationConfig

LARGEST = 1e30  # of a number, so that arithmetic in float32 has room
LONGEST_NAME = 4000  # characters, of a model
MOST_SAMPLES = 10_000  # of one prompt


class NoRecord(UsageError):
    """What is no record of a text, or lacks what is needed to write it again."""


class NoText(NoRecord):
    """What was to become a text, and failed when it was written."""


@dataclass(frozen=True, slots=True)
class Written:
    """One text as it was written.

    Its tokens are known as `ids`, or only its `text` is; `is_part` if what followed is not. The
    first `offset` tokens belong to another text, which it goes on from. Why it has ended
    (`finish_reason`) is stop, length or eos, and None where that is not known.
    """

    name: str
    sample: int = 0
    text: str | None = None
    ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    is_part: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """What proposed tokens: the same seed gives another text with it than without."""

    name: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Place:
    """The model that has written something, where and how, as far as the record says."""

    model: str
    device: str | None = None
    precision: str | None = None
    adapters: tuple[str, ...] = ()
    interventions: Interventions = field(default_factory=Interventions)


Prepare = Callable[["LoadedModel"], "tuple[list[int], GenerationConfig]"]
"""What a model reads of a record's prompt, and the settings. Raises `UsageError`."""


@dataclass(frozen=True, slots=True)
class Record:
    """Texts that were written for one prompt, and all that is needed to write them again.

    `facts` are those of the model, by the names of `LoadedModel.facts`. With an `answer` that
    shows the best of several, all `candidates` must be written to find those.
    """

    place: Place
    facts: Mapping[str, Any]
    prepare: Prepare
    texts: tuple[Written, ...]
    draft: Draft | None = None
    answer: Answer | None = None
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """What is no record, and why; not even of a text (`is_text`) where it failed when written."""

    name: str
    error: UsageError
    is_text: bool = True


def place_of(facts: Mapping[str, Any]) -> Place:
    """The place that facts name. Raises `NoRecord` where they name no model."""
    adapters = facts.get("adapters") or []
    if not isinstance(adapters, list):
        raise NoRecord(f"adapters must be a list, not {shown(adapters)}")
    return Place(
        text(facts, "model", LONGEST_NAME),
        None if facts.get("device") is None else text(facts, "device", 100),
        None if facts.get("precision") is None else text(facts, "precision", 100),
        tuple(checked_text(a, "an adapter") for a in adapters),
        interventions(facts.get("interventions")),
    )


def interventions(value: Any) -> Interventions:
    """The plan of an object such as `Interventions.as_dict` gives; none for null."""
    if value is None:
        return Interventions()
    given = mapping(value, "interventions")
    for name in given:
        if name not in ("ablate", "ablate_with", "reference", "steer"):
            raise NoRecord(f"interventions have no {shown(name)}")
    for name in ("ablate", "steer"):
        if not isinstance(given.get(name, []), list):
            raise NoRecord(f"{name} must be a list, not {shown(given[name])}")
    for one in given.get("steer", []):
        settings(mapping(one, "steer"))
    settings(given)
    return Interventions.of(**given)


def mapping(value: Any, name: str) -> dict[str, Any]:
    """An object of JSON."""
    if not isinstance(value, dict):
        raise NoRecord(f"{name} must be an object, not {shown(value)}")
    return value


def text(record: Mapping[str, Any], name: str, longest: int | None = None) -> str:
    """A field that is text."""
    if name not in record:
        raise NoRecord(f"it has no {name}")
    found = checked_text(record[name], name)
    if longest is not None and len(found) > longest:
        raise NoRecord(f"{name} is too long: {len(found):,} characters")
    return found


def checked_text(value: Any, name: str) -> str:
    """Text, of Unicode."""
    if not isinstance(value, str):
        raise NoRecord(f"{name} must be text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NoRecord(f"{name} is not valid Unicode text") from None
    return value


def whole(record: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A field that is a whole number from 0."""
    value = record.get(name, default)
    if value is None:
        raise NoRecord(f"it has no {name}")
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise NoRecord(f"{name} must be a whole number from 0, not {shown(value)}")
    return value


def ids(value: Any, name: str) -> tuple[int, ...]:
    """Token ids; whether a model has them is not known yet."""
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise NoRecord(f"{name} must be a list of token ids, not {shown(value)}")
    return tuple(value)


def settings(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings, seen to hold no number and no text that nothing could compute with."""
    for name, value in given.items():
        checked_text(name, "a name")
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, str):
                checked_text(one, name)
            elif isinstance(one, int | float) and not abs(one) <= LARGEST:
                raise NoRecord(f"{name} must be up to {LARGEST:g}, not {shown(one)}")
    return given


def biases(value: Any) -> dict[int, float]:
    """Biases by token id, as records have them: ids and perhaps amounts are texts."""
    found: dict[int, float] = {}
    for name, amount in mapping(value, "bias").items():
        try:
            token, number = int(name) if name.isascii() and name.isdecimal() else -1, float(amount)
        except (TypeError, ValueError, OverflowError):
            raise NoRecord(f"bias must have numbers, not {shown(amount)}") from None
        if not 0 <= token < 2**31 or not (abs(number) <= LARGEST or number == -math.inf):
            raise NoRecord(f"bias must have amounts by token id, not {shown({name: amount})}")
        found[token] = number
    return found


def constraint(value: Any) -> Any:
    """The constraint of a record, {kind: source}; None for null. Raises `UsageError`."""
    if value is None:
        return None
    given = mapping(value, "constraint")
    if len(given) != 1:
        raise NoRecord(f"constraint must have one kind, not {shown(value)}")
    ((kind, source),) = given.items()
    name = kind.replace("-", "_")
    if name not in ("regex", "json_schema", "choice", "grammar"):
        raise NoRecord(f"there is no constraint {shown(kind)}")
    if name == "choice":
        if not isinstance(source, list) or not source:
            raise NoRecord(f"choice must be a list of texts, not {shown(source)}")
        source = [checked_text(one, name) for one in source]
    else:
        source = checked_text(source, name)
    from gpt2cli.sampling.constraint import resolve

    return resolve(**{name: source})
