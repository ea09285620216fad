"""Options of what to change inside a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.grouped import Group
from gpt2cli.cli.io.inputs import read_argument
from gpt2cli.cli.options import one_of
from gpt2cli.config.interventions import ABLATE_WITH, Interventions
from gpt2cli.errors import UsageError
from gpt2cli.files import read_file

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel


@dataclass(frozen=True)
class Changes(Group):
    """Interventions"""

    ablate: Annotated[
        list[str] | None,
        typer.Option(
            "--ablate",
            metavar="PART",
            help="Switch off 5.6 (head 6 of layer 5), attention.5, mlp.5, layer.5 (both), or "
            "position.3 (what later tokens take from the token at 3); all count from 0. May be "
            "given several times.",
        ),
    ] = None
    ablate_with: Annotated[
        str | None,
        typer.Option(
            "--ablate-with",
            metavar="NAME",
            autocompletion=one_of(*ABLATE_WITH),
            help="zero, or mean: what the part computes on average. [default: zero]",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The text over whose tokens the mean is taken. [default: the prompt]",
        ),
    ] = None
    steer: Annotated[
        str | None,
        typer.Option(
            "--steer",
            metavar="TEXT",
            help="Add the direction of this text, seen from that of --steer-away, to the stream "
            "from the prompt's last token on.",
        ),
    ] = None
    steer_away: Annotated[
        str | None,
        typer.Option("--steer-away", metavar="TEXT", help="The text to steer away from."),
    ] = None
    steer_layer: Annotated[
        int | None,
        typer.Option(
            "--steer-layer",
            min=0,
            metavar="N",
            help="Add it to what goes into layer N. [default: half-way]",
        ),
    ] = None
    steer_strength: Annotated[
        float | None,
        typer.Option("--steer-strength", metavar="N", help="Add it N times. [default: 1]"),
    ] = None

    def check(self) -> None:
        """Raise `UsageError` for a part that is none, or an option without the one it needs."""
        self.check_company(_NEEDED)
        if self.reference is not None and self.ablate_with != "mean":
            raise UsageError("reference needs ablate_with mean", "reference", "ablate_with")
        self._plan(None, [])

    def applied(self, model: LoadedModel, prompt: str, ids: Sequence[int]) -> LoadedModel:
        """The model under the interventions, for a prompt of these ids; as it is without any.

        Raises `UsageError` for what the model or the prompt has not.
        """
        if self.ablate is None and self.steer is None:
            return model
        reference = prompt
        if self.reference is not None:
            reference = read_file(self.reference)
        config = model.config
        steering = {
            "towards": read_argument(self.steer or ""),
            "away": read_argument(self.steer_away or ""),
            "layer": config.n_layers // 2 if self.steer_layer is None else self.steer_layer,
            "strength": 1.0 if self.steer_strength is None else self.steer_strength,
            "first": min(len(ids), config.context_length) - 1,
        }
        plan = self._plan(reference, [] if self.steer is None else [steering])
        plan.check(config, len(ids))
        return model.under(plan)

    def _plan(self, reference: str | None, steer: list[dict[str, Any]]) -> Interventions:
        mean = self.ablate_with == "mean"
        return Interventions.of(
            self.ablate or (),
            ABLATE_WITH[0] if self.ablate_with is None else self.ablate_with,
            reference if mean else None,
            steer,
        )


# Options that only change what another one does.
_NEEDED = {
    "ablate_with": "ablate",
    "reference": "ablate",
    "steer": "steer_away",
    "steer_away": "steer",
    "steer_layer": "steer",
    "steer_strength": "steer",
}
