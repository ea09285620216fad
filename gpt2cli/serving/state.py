"""What a bulk run is, as OUTPUT.run.json says: it continues only as what it began as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError, shown
from gpt2cli.generation.request import new_seed
from gpt2cli.records import Input
from gpt2cli.serving.journal import Place, has_lines

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel


@dataclass
class State:
    """What the run is, and when it has ended, its `rows`, `errors` and `bytes`."""

    facts: dict[str, Any]
    finished: dict[str, int] | None = None

    @classmethod
    def read(cls, place: Place) -> State | None:
        """That of a place; None where no run began."""
        found = place.read_run()
        return None if found is None else cls(found["run"], found["finished"])

    def write(self, place: Place) -> None:
        """Write it down."""
        place.write_run({"run": self.facts, "finished": self.finished})

    @property
    def seed(self) -> int:
        """What the seeds of the rows are made of."""
        return int(self.facts["seed"])

    @property
    def rows_and_errors(self) -> tuple[int, int]:
        """What came out; nothing before the run has ended."""
        return (self.finished["rows"], self.finished["errors"]) if self.finished else (0, 0)

    def is_finished(self, place: Place) -> bool:
        """Whether the run has ended, and its output is still what it was."""
        return self.finished is not None and self.finished["bytes"] == place.size


def describe(model: LoadedModel, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run and its model's, in JSON. The model has been fetched."""
    from gpt2cli.decoders.native.quantize import identity

    weights = identity(model.directory, model.adapters)["identity"][:16]
    own = model.facts()
    del own["processor"]  # another one may continue the run
    found: dict[str, Any] = json.loads(json.dumps({**own, "weights": weights, **facts}))
    return found


def check_new(place: Place, source: Input) -> None:
    """Raise `UsageError` if there is an output already that cannot be continued."""
    if not (place.size or has_lines(place.lines)):
        return
    if State.read(place) is None:
        raise UsageError(
            f"{place.target} exists and was not begun by gpt2 bulk, or lost its "
            f"{place.run_file.name}; write to another file, or replace it with --overwrite"
        )
    if source.is_stdin:
        raise UsageError(
            f"{place.target} exists, and stdin cannot be read again to continue it: put the "
            "prompts into a file, write to another one, or begin anew with --overwrite"
        )


def begin(place: Place, facts: Mapping[str, Any], seed: int | None) -> State:
    """Begin a run, or find where it stopped; `place` is locked, and `check_new` passed.

    Without a `seed` a new run draws one. Raises `UsageError` if the output is that of a run with
    other facts.
    """
    state = State.read(place)
    if state is None or not (state.is_finished(place) or has_lines(place.lines)):
        place.lines.unlink(missing_ok=True)  # what a run killed in its first row has left
        state = State({**facts, "seed": new_seed() if seed is None else seed})
        state.write(place)
        return state
    now = {**facts, "seed": state.seed if seed is None else seed}
    _check_same(state.facts, now, place)
    return state


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], place: Place) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        what = ", ".join(
            f"{name} was {_value(before, name)} and is now {_value(now, name)}" for name in names
        )
        raise UsageError(
            f"{place.target} was begun as another run: {what}; repeat the command as it was, "
            "write to another file, or begin anew with --overwrite",
            *names,
        )


def _value(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    return "not given" if value is None else value if isinstance(value, str) else shown(value)
