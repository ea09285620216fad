"""The fields of a request about a model's inside, checked: prompts, places, tokens, plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt2cli.api import LoadedModel
from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import ContextError, UsageError, did_you_mean, shown

MOST_REFERENCE = 16_384  # tokens of a text whose mean is taken
MOST_STEERINGS = 16
MOST_PATCHES = 4096  # runs of the model for a map


class Asked:
    """A request's fields, of which only those in `names` may be there.

    Every method raises `UsageError` for a value that is none.
    """

    def __init__(self, body: Mapping[str, Any], model: LoadedModel, *names: str) -> None:
        for name in body:
            if name not in names:
                hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
                raise UsageError(f"unknown field {shown(name)}{hint}")
        self._body, self._model = body, model

    def text(self, name: str = "prompt") -> list[int]:
        """The tokens of a prompt, given as a text or as ids: end-of-text for an empty one."""
        prompt = self._body.get(name)
        if not isinstance(prompt, str | list):
            raise UsageError(f"{name} must be a text or a list of token ids", name)
        return self._model.ids(prompt)

    def ids(self, name: str = "prompt") -> list[int]:
        """The same of a prompt that fits the context."""
        ids, context = self.text(name), self._model.config.context_length
        if len(ids) > context:
            raise ContextError(f"{name} has {len(ids)} tokens, the context {context}", name)
        return ids

    def whole(self, name: str, usual: int | None, least: int, most: int) -> int:
        """A whole number; without a `usual` one it must be given."""
        value = self._body.get(name)
        value = usual if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON knows but one kind of number
        if type(value) is not int or not least <= value <= most:
            raise UsageError(
                f"{name} must be a whole number from {least} to {most}, not {shown(value)}", name
            )
        return value

    def position(self, ids: list[int]) -> int:
        """The place in a text that is looked at, by default its last token."""
        return self.whole("position", len(ids) - 1, 0, len(ids) - 1)

    def token(self, name: str) -> int | None:
        """A token, given by its id or its text."""
        value = self._body.get(name)
        if value is None:
            return None
        tokenizer = self._model.tokenizer
        if isinstance(value, str):
            try:
                return tokenizer.one(value)
            except UsageError as error:
                raise UsageError(f"{name}: {error}", name) from error
        if type(value) is not int or not 0 <= value < tokenizer.size:
            raise UsageError(
                f"{name} must be a token's text or id, from 0 to {tokenizer.size - 1}, "
                f"not {shown(value)}",
                name,
            )
        return value

    def some_of(self, name: str, choices: tuple[str, ...]) -> list[str]:
        """Some of the choices, in their order; by default all."""
        value = self._body.get(name)
        value = list(choices) if value is None else value
        if not isinstance(value, list) or not value or not all(one in choices for one in value):
            raise UsageError(f"{name} must be a list of {', '.join(choices)}", name)
        return [one for one in choices if one in value]

    def plan(self, ids: list[int]) -> Interventions:
        """The interventions for a text, none if there are none. Checks that the model can change.

        A mean is taken over that text unless there is a reference.
        """
        given = self._body.get("plan")
        if given is None:
            return Interventions()
        if not isinstance(given, dict):
            raise UsageError(f"plan must be an object, not {shown(given)}", "plan")
        plan = self._read(given, ids)
        if plan:
            plan.check(self._model.config, len(ids))
            self._model.under(plan)  # or it says why this model cannot be changed
        return plan

    def _read(self, given: Mapping[str, Any], ids: list[int]) -> Interventions:
        names = ("ablate", "ablate_with", "reference", "steer")
        for name in given:
            if name not in names:
                raise UsageError(f"plan: unknown field {shown(name)}{did_you_mean(name, names)}")
        for name in ("ablate", "steer"):
            if not isinstance(given.get(name, []), list):
                raise UsageError(f"plan: {name} must be a list", "plan")
        steer = given.get("steer", [])
        if not all(isinstance(one, dict) for one in steer) or len(steer) > MOST_STEERINGS:
            raise UsageError(
                f"plan: steer must be a list of up to {MOST_STEERINGS} objects", "plan"
            )
        given = {name: value for name, value in given.items() if value is not None}
        if given.get("ablate_with") == "mean":
            given = {"reference": self._model.tokenizer.decode(ids)} | given
        plan = Interventions.of(**given)
        if plan.reference is not None:
            count = len(self._model.tokenizer.encode(plan.reference))
            if count > MOST_REFERENCE:
                raise UsageError(
                    f"plan: a reference may have up to {MOST_REFERENCE:,} tokens, not {count:,}",
                    "plan",
                )
        return plan
