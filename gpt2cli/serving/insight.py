"""What a page shows of a model's inside: the numbers of `analysis`, for the fields of a request.

They come from the reference model in PyTorch, in fp32, which is opened when it is first needed.
Nothing here may run twice at once.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2cli.api import LoadedModel
from gpt2cli.serving.asked import Asked
from gpt2cli.serving.reference import Reference

if TYPE_CHECKING:
    from gpt2cli.arrays import NDArray
    from gpt2cli.config.interventions import Interventions
    from gpt2cli.model.edits import Edits
    from gpt2cli.model.gpt2 import GPT2

Body = Mapping[str, Any]
MOST_TOP = 100
DRAWN = 64  # tokens of which a map shows each


class Insight:
    """A model that is looked into."""

    def __init__(self, model: LoadedModel, reference: Reference) -> None:
        self._model, self._reference = model, reference

    @property
    def _network(self) -> GPT2:
        return self._reference.network()

    def _edits(self, plan: Interventions) -> Edits | None:
        from gpt2cli.model.interventions import edits

        return edits(self._network, plan, self._model.tokenizer) if plan else None

    def inspect(self, body: Body) -> dict[str, Any]:
        """What happens to the token at `position`."""
        from gpt2cli.analysis.inspection import inspect

        names = ("prompt", "position", "token", "versus", "plan", "top", "neurons")
        asked = Asked(body, self._model, *names)
        ids = asked.ids()
        position, plan, top = (
            asked.position(ids),
            asked.plan(ids),
            asked.whole("top", 10, 1, MOST_TOP),
        )
        read = ids[: position + 1]
        found = inspect(
            self._network,
            self._model.tokenizer,
            read,
            token=asked.token("token"),
            window=1,
            top=top,
            edits=self._edits(plan),
        )
        sections = "next", "contributions", "lens", "activations", "norms", "attention"
        data = found.as_dict(sections)
        del data["attention"], data["attention_before"]
        return data

    def attention(self, body: Body) -> dict[str, Any]:
        """How much each token takes from which, in all heads."""
        from gpt2cli.model.trace import trace

        asked = Asked(body, self._model, "prompt", "plan")
        ids = asked.ids()
        found = trace(self._network, ids, DRAWN, self._edits(asked.plan(ids)))
        first = max(0, len(ids) - DRAWN)
        maps = found.attention.cpu().numpy()[..., first:]
        return {"first": first, "block": 1} | _packed(maps)

    def effect(self, body: Body) -> dict[str, Any]:
        """What interventions change in the prediction after a text."""
        from gpt2cli.analysis.effects import effect

        asked = Asked(body, self._model, "prompt", "plan", "token", "top")
        ids = asked.ids()
        plan, top = asked.plan(ids), asked.whole("top", 10, 1, MOST_TOP)
        edits = self._edits(plan)
        if edits is None:
            from gpt2cli.model.edits import Edits

            edits = Edits()
        token = asked.token("token")
        found = effect(self._network, self._model.tokenizer, ids, edits, token=token, top=top)
        return found.as_dict()


def _packed(numbers: NDArray) -> dict[str, Any]:
    """An array as fp32, of which JSON would make several times as many bytes."""
    data = base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    return {"shape": list(numbers.shape), "data": data}
