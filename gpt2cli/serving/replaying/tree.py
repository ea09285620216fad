"""What the page exports: a tree of branches, each of which may have been written by a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError, shown
from gpt2cli.serving import completions
from gpt2cli.serving.replaying import record
from gpt2cli.serving.replaying.record import NoRecord, Place, Record, Refused, Written
from gpt2cli.text.window import OVERFLOW

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.request import GenerationConfig

FORMAT, VERSION = "gpt2-page", 1
_UNKNOWN = -1  # the id of a text that was not cut into tokens yet
_OF_THE_REQUEST = (
    "model",
    "n",
    "best_of",
    "echo",
    "logprobs",
    "seed",
    "stream",
    "overflow",
    "user",
)
_OF_THE_PAGE = ("prompt", "top", "plan", "max_tokens", "stream_options", "suffix")


def is_one(found: Mapping[str, Any]) -> bool:
    """Whether an object is such a tree."""
    return found.get("format") == FORMAT


def read(found: Mapping[str, Any]) -> Iterator[Record | Refused]:
    """A record for each branch that was written, in the tree's order. Raises `NoRecord`.

    A branch of which something is wrong is refused alone.
    """
    if found.get("version") != VERSION:
        raise NoRecord(
            f"it is of version {shown(found.get('version'))} of {FORMAT}, this program reads "
            f"version {VERSION}"
        )
    tree = record.mapping(found.get("tree"), "tree")
    branches = record.mapping(tree.get("branches"), "branches")
    tokens = {name: _tokens(name, branch) for name, branch in branches.items()}
    usual = found.get("model") or {}
    usual = record.mapping(usual, "model")
    usual = record.mapping(usual.get("facts", usual), "facts")
    for name, branch in branches.items():
        if branch.get("origin") is not None:
            try:
                before = _before(name, branches, tokens)
                yield _record(name, branch, usual, before, tokens[name])
            except UsageError as error:
                yield Refused(f"branch {name}", error)


def _tokens(name: str, branch: Any) -> tuple[int, ...]:
    """The ids of a branch's tokens."""
    found = record.mapping(branch, f"branch {shown(name)}").get("tokens")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise NoRecord(f"tokens must be a list of objects, not {shown(found)}")
    ids = [each.get("id") for each in found]
    record.ids([i for i in ids if i != _UNKNOWN or type(i) is not int], "tokens")
    return tuple(ids)


def _before(
    name: str, branches: Mapping[str, Any], tokens: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The tokens of all ancestors of a branch, the first of all at the beginning."""
    path: list[tuple[int, ...]] = []
    seen, parent = {name}, branches[name].get("parent")
    while parent is not None:
        if not isinstance(parent, str) or parent not in branches or parent in seen:
            raise NoRecord(f"branch {shown(name)} has no way to a root")
        seen.add(parent)
        path.append(tokens[parent])
        parent = branches[parent].get("parent")
    return tuple(i for part in reversed(path) for i in part)


def _record(
    name: str,
    branch: Mapping[str, Any],
    usual: Mapping[str, Any],
    before: tuple[int, ...],
    own: tuple[int, ...],
) -> Record:
    if _UNKNOWN in before + own:
        raise NoRecord("it follows text of another vocabulary, whose tokens it does not hold")
    origin = record.mapping(branch["origin"], "origin")
    offset = record.whole(origin, "offset", 0)
    if offset > len(before):
        raise NoRecord(f"offset is {offset}, of {len(before)} tokens before the branch")
    begin = len(before) - offset
    given = record.mapping(origin.get("settings", {}), "settings")
    own_facts = record.mapping(origin.get("facts") or {}, "facts")
    # What was asked for, where a text was stopped before it was told what it was written under.
    facts = {**usual, "interventions": given.get("plan"), **own_facts}
    called = branch.get("name")
    called = f" ({called})" if isinstance(called, str) and called else ""
    written = Written(
        f"branch {name}{called}",
        record.whole(origin, "sample", 0),
        None,
        before[begin:] + own,
        None,
        True,
        offset,
    )
    settings = _settings(given) | {"seed": record.whole(origin, "seed")}
    prepare = _Preparing(before[:begin], settings, _rules_off(given), len(written.ids or ()))
    place: Place = record.place_of(facts)
    return Record(place, facts, prepare, (written,))


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by our names; how many tokens or texts were asked for changes none of them."""
    left_out = (*_OF_THE_REQUEST, *_OF_THE_PAGE)
    plain = {name: value for name, value in given.items() if name not in left_out}
    least = record.whole(plain, "min_tokens", 0)
    found = dict(completions.read(plain | {"max_tokens": max(1, least)}).settings)
    del found["samples"]
    return found


def _rules_off(given: Mapping[str, Any]) -> dict[str, Any]:
    """The rules that null switches off, where the model has one by default."""
    usual = asdict(SamplingConfig())
    return {name: usual[name] for name in usual if given.get(name, 0) is None}


class _Preparing:
    """Makes ready a branch: the tokens that it continues, and as many as it has."""

    def __init__(
        self,
        prompt: tuple[int, ...],
        settings: dict[str, Any],
        off: dict[str, Any],
        count: int,
    ) -> None:
        self._prompt, self._settings, self._off = prompt, settings, off
        self._count = max(1, count)

    def __call__(self, model: LoadedModel) -> tuple[list[int], GenerationConfig]:
        """What the model reads, and the settings."""
        settings = self._settings | {"max_tokens": self._count, "overflow": OVERFLOW[0]}
        if "min_tokens" in settings:
            settings["min_tokens"] = min(settings["min_tokens"], self._count)
        window, config = model.prepare(self._prompt, settings)
        return window, replace(config, sampling=replace(config.sampling, **self._off))
