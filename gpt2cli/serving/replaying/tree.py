"""What the page exports: a tree of branches, each of which may have been written by a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import shown
from gpt2cli.serving import completions
from gpt2cli.serving.replaying import record
from gpt2cli.serving.replaying.record import NoRecord, Place, Record, Written
from gpt2cli.text.window import OVERFLOW

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.request import GenerationConfig

FORMAT, VERSION = "gpt2-page", 1
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


def read(found: Mapping[str, Any]) -> Iterator[Record]:
    """A record for each branch that was written, in the tree's order. Raises `NoRecord`."""
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
            origin = record.mapping(branch["origin"], "origin")
            before = _before(name, branches, tokens)
            yield _record(name, branch, origin, usual, before, tokens[name])


def _tokens(name: str, branch: Any) -> tuple[int, ...]:
    """The ids of a branch's tokens."""
    found = record.mapping(branch, f"branch {shown(name)}").get("tokens")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise NoRecord(f"tokens must be a list of objects, not {shown(found)}")
    return record.ids([each.get("id") for each in found], "tokens")


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
    origin: Mapping[str, Any],
    usual: Mapping[str, Any],
    before: tuple[int, ...],
    own: tuple[int, ...],
) -> Record:
    offset = record.whole(origin, "offset", 0)
    if offset > len(before):
        raise NoRecord(f"offset is {offset}, of {len(before)} tokens before the branch")
    begin = len(before) - offset
    given = record.mapping(origin.get("settings", {}), "settings")
    facts = dict(usual) | record.mapping(origin.get("facts") or {}, "facts")
    if given.get("plan") is not None:
        facts["interventions"] = given["plan"]
    called = branch.get("name")
    called = f" ({called})" if isinstance(called, str) and called else ""
    written = Written(
        f"branch {name}{called}",
        record.whole(origin, "sample", 0),
        None,
        before[begin:] + own,
        None,
        True,
    )
    prepare = _Preparing(before[:begin], _settings(given), record.whole(origin, "seed"), written)
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


class _Preparing:
    """Makes ready a branch: the tokens that it continues, and as many as it has."""

    def __init__(
        self, prompt: tuple[int, ...], settings: dict[str, Any], seed: int, written: Written
    ) -> None:
        self._prompt, self._settings = prompt, settings | {"seed": seed}
        self._count = max(1, len(written.ids or ()))

    def __call__(self, model: LoadedModel) -> tuple[list[int], GenerationConfig]:
        """What the model reads, and the settings."""
        settings = self._settings | {"max_tokens": self._count, "overflow": OVERFLOW[0]}
        if "min_tokens" in settings:
            settings["min_tokens"] = min(settings["min_tokens"], self._count)
        return model.prepare(self._prompt, settings)
