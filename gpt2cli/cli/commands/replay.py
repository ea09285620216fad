"""`gpt2 replay`: write recorded texts again, and say where one is not what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.progress import count_progress
from gpt2cli.cli.io.terminal import Output, complain, notice
from gpt2cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.replaying.record import Place
    from gpt2cli.serving.replaying.repeating import Outcome


@dataclass(frozen=True)
class Recorded(Group):
    """Model and machine"""

    # No defaults of the environment: what is recorded is nearer than they are.
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            autocompletion=options.complete_model,
            help="Another model than the recorded one, as everywhere.",
        ),
    ] = None
    adapter: options.Adapter = None
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of("auto", "cpu", "cuda", "mps"),
            help="Another device than the recorded one; without that, auto.",
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of(*options.PRECISIONS),
            help="Another precision than the recorded one.",
        ),
    ] = None
    threads: options.Threads = None
    offline: options.Offline = False


@grouped
def replay(
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Records: JSON, JSONL or Parquet; - is stdin.")
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Input",
            help="The .run.json of a bulk run, where it does not lie beside FILE.",
        ),
    ] = None,
    as_json: options.Json = False,
    recorded: Recorded,
    messages: options.Messages,
) -> None:
    """Write recorded texts again, and show where one differs.

    A record is what the page exports, what gpt2 generate --json prints, a line of gpt2 bulk, or a
    request of gpt2 serve with its response. For a text that differs: the first other token, and
    which of model, version, precision, engine and machine are not what they were. Of a record
    nothing is opened but its model; adapters are for --adapter to name.

    Exit codes: 0 all are the same, 1 some differ, 2 some are no records or cannot be repeated.

    \b
    Examples:
      gpt2 replay tree.json
      gpt2 generate -m bard "ROMEO:" --json | gpt2 replay -
      gpt2 replay completions.jsonl --precision int8
      gpt2 replay record.json -m 355M --json
    """
    if recorded.threads is not None:  # before NumPy is imported
        from gpt2cli.system.device import limit_threads

        limit_threads(recorded.threads)
    from gpt2cli.serving.replaying import reading
    from gpt2cli.serving.replaying.repeating import repeat

    outcomes: list[Outcome] = []
    with count_progress("texts") as advance:
        for outcome in repeat(reading.read(file, run), _opener(recorded, messages.verbose)):
            outcomes.append(outcome)
            advance(1)
    if not outcomes:
        raise UsageError(f"{file} holds no record of a text that a model wrote")
    _show(outcomes, as_json)
    found = {outcome.status for outcome in outcomes}
    if found == {"skipped"} or "error" in found:
        raise typer.Exit(2)
    if "different" in found:
        raise typer.Exit(1)


def _opener(recorded: Recorded, verbose: bool) -> Callable[[Place], LoadedModel]:
    """What opens the model that a record names, or the one that the options name."""

    def open_place(place: Place) -> LoadedModel:
        if place.adapters and recorded.adapter is None:
            names = " and ".join(map(repr, place.adapters))
            raise UsageError(f"it was written with the adapter {names}: name it with --adapter")
        name = place.model if recorded.model is None else recorded.model
        notice(f"the model is {name!r}", asked=verbose or _is_foreign(name))
        model = _load(name, place, recorded)
        opening.fetch(model)
        if verbose:
            complain(model.describe())
        return model.under(place.interventions) if place.interventions else model

    return open_place


def _load(name: str, place: Place, recorded: Recorded) -> LoadedModel:
    """The model where it ran; on another device where there is no such one."""
    precision = recorded.precision or place.precision or "auto"
    devices = [recorded.device] if recorded.device else [place.device or "auto", "auto"]
    for device in devices:
        machine = options.Machine(device, recorded.threads, recorded.offline)
        try:
            return opening.load_named(name, machine, precision, recorded.adapter, computes=True)
        except DeviceError:
            if device == devices[-1]:
                raise
        except (OSError, ValueError) as error:  # what no file can be called
            raise UsageError(f"there is no model {name[:60]!r}: {error}") from None
    raise AssertionError


def _is_foreign(name: str) -> bool:
    """Whether a model is none of those that this program knows by name."""
    from gpt2cli.config.spec import find_spec

    return find_spec(name) is None


def _show(outcomes: list[Outcome], as_json: bool) -> None:
    from gpt2cli.cli.render import replay_view

    if as_json:
        record = replay_view.as_dict(outcomes)
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    elif len(outcomes) == 1:
        replay_view.print_one(outcomes[0])
    else:
        replay_view.print_all(outcomes)
