"""What a page shows of a model's inside: the numbers of `analysis`, for the fields of a request.

They come from the reference model in PyTorch, in fp32, which is opened when it is first needed.
Nothing here may run twice at once. Every question takes `advance`, which is called from time to
time and may raise to end it.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2cli.api import LoadedModel
from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import UsageError
from gpt2cli.progress import Advance
from gpt2cli.serving.asked import MOST_PATCHES, Asked
from gpt2cli.serving.reference import Reference

if TYPE_CHECKING:
    from gpt2cli.arrays import NDArray
    from gpt2cli.model.edits import Edits
    from gpt2cli.model.gpt2 import GPT2
    from gpt2cli.model.trace import Trace

Body = Mapping[str, Any]
MOST_TOP = 100
MOST_NEURONS = 100
MOST_LISTED = 20  # of a place in the lens
DRAWN = 64  # tokens of which a map or the lens shows each
MOST_KEPT = 128 << 20  # bytes of traces
LEAST = 0.4  # a head is of a kind from this score on
MAPS = ("stream", "heads", "attention", "mlp")
_Key = tuple[tuple[int, ...], Interventions]


@dataclass(frozen=True)
class Patches:
    """A series of patches that can be run: how many there are, and what runs them."""

    total: int
    run: Callable[[Advance], dict[str, Any]]


class Insight:
    """A model that is looked into."""

    def __init__(self, model: LoadedModel, reference: Reference) -> None:
        self._model, self._reference = model, reference
        self._traces: OrderedDict[_Key, Trace] = OrderedDict()
        self._last_edits: tuple[Interventions, Edits | None] = Interventions(), None

    @property
    def network(self) -> GPT2:
        """The reference model. Raises `UsageError` without PyTorch."""
        return self._reference.network()

    def inspect(self, body: Body, advance: Advance) -> dict[str, Any]:
        """What happens to the token at `position`, and what is predicted there."""
        names = ("prompt", "position", "token", "versus", "plan", "top", "neurons")
        asked = Asked(body, self._model, *names)
        ids, top = asked.ids(), asked.whole("top", 10, 1, MOST_TOP)
        position, plan = asked.position(ids), asked.plan(ids)
        token, versus = asked.token("token"), asked.token("versus")
        neurons = asked.whole("neurons", 5, 0, MOST_NEURONS)

        from gpt2cli.analysis import effects, inspection

        network, tokenizer = self.network, self._model.tokenizer
        trace = self._trace_at(ids, position, plan, advance)
        found = inspection.measure(
            network, tokenizer, trace, token=token, versus=versus, top=top, neurons=neurons
        )
        sections = "next", "contributions", "lens", "activations", "norms", "embedding", "neurons"
        data = found.as_dict(sections)
        data["attention_row"] = _plain(trace.attention[:, :, 0].cpu().numpy())
        if plan:
            before = self._trace_at(ids, position, Interventions(), advance)
            logits = (inspection.final_logits(network, tokenizer, t) for t in (before, trace))
            data["effect"] = effects.compare(tokenizer, *logits, token=token, top=top).as_dict()
        return data

    def lens(self, body: Body, advance: Advance) -> dict[str, Any]:
        """What each layer would say after each of up to `DRAWN` tokens, those from `first` on."""
        asked = Asked(body, self._model, "prompt", "plan", "top", "first")
        ids, plan = asked.ids(), asked.plan(asked.ids())
        listed = asked.whole("top", 3, 1, MOST_LISTED)
        first = asked.whole("first", max(0, len(ids) - DRAWN), 0, len(ids) - 1)

        from gpt2cli.analysis import inspection

        shown = ids[: first + DRAWN]
        kept = self._trace(ids, plan, advance)
        if kept is not None:
            stream = kept.stream[::2, first : first + DRAWN]
        else:
            from gpt2cli.model.trace import trace

            window, edits = len(shown) - first, self._edits(plan)
            stream = trace(self.network, shown, window, edits, advance).stream[::2]
        tokenizer = self._model.tokenizer
        found = inspection.lens(self.network, tokenizer, stream, listed=listed, advance=advance)
        return {
            "first": first,
            "ids": found.ids.tolist(),
            "texts": found.texts,
            "probabilities": _plain(found.probabilities),
        }

    def attention(self, body: Body, advance: Advance) -> dict[str, Any]:
        """How much each token takes from which, in all heads; of a longer text, blocks of them."""
        asked = Asked(body, self._model, "prompt", "plan")
        ids = asked.ids()
        plan = asked.plan(ids)

        from gpt2cli.analysis import attending

        kept = self._trace(ids, plan, advance)
        found = attending.maps(
            self.network,
            ids,
            DRAWN,
            None if kept else self._edits(plan),
            attention=None if kept is None else kept.attention,
            advance=advance,
        )
        return {"first": 0, "block": found.block} | _packed(found.weights)

    def head(self, body: Body, advance: Advance) -> dict[str, Any]:
        """What one head does for the token at `position`."""
        asked = Asked(body, self._model, "prompt", "layer", "head", "position", "plan")
        ids, config = asked.ids(), self._model.config
        layer = asked.whole("layer", None, 0, config.n_layers - 1)
        number = asked.whole("head", None, 0, config.n_heads - 1)
        position, plan = asked.position(ids), asked.plan(ids)

        from gpt2cli.analysis import attending

        kept = self._trace(ids, plan, advance)
        found = attending.head(
            self.network,
            ids,
            layer,
            number,
            position,
            self._edits(plan),
            stream=None if kept is None else kept.stream[2 * layer],
        )
        names = "scores", "weights", "values", "q", "k", "v"
        data: dict[str, Any] = {name: _plain(getattr(found, name)) for name in names}
        return data | {"output_norm": _plain(found.output_norm), "map": _packed(found.map)}

    def effect(self, body: Body, advance: Advance) -> dict[str, Any]:
        """What interventions change in the prediction after a text."""
        asked = Asked(body, self._model, "prompt", "plan", "token", "top")
        ids = asked.ids()
        plan, top = asked.plan(ids), asked.whole("top", 10, 1, MOST_TOP)
        token = asked.token("token")

        from gpt2cli.analysis import effects, inspection

        tokenizer, last = self._model.tokenizer, len(ids) - 1
        logits = (
            inspection.final_logits(
                self.network, tokenizer, self._trace_at(ids, last, one, advance)
            )
            for one in (Interventions(), plan)
        )
        return effects.compare(tokenizer, *logits, token=token, top=top).as_dict()

    def patch(self, body: Body, advance: Advance) -> Patches:
        """What restores one prompt's answer in another, ready to be run.

        Raises `UsageError` if that were too many patches.
        """
        names = "clean", "corrupted", "answer", "versus", "maps"
        asked = Asked(body, self._model, *names)
        clean, corrupted = asked.ids("clean"), asked.ids("corrupted")
        answer, versus = asked.token("answer"), asked.token("versus")
        maps = asked.some_of("maps", MAPS)

        from gpt2cli.analysis import patching

        network, tokenizer = self.network, self._model.tokenizer
        first = patching.check(network, tokenizer, clean, corrupted)
        total = patching.count(network, len(clean) - first, maps)
        if total > MOST_PATCHES:
            raise UsageError(
                f"that would be {total:,} patches, of up to {MOST_PATCHES:,}; shorten the prompts, "
                "let them begin alike, or ask for fewer maps",
                "maps",
            )

        def run(advance: Advance) -> dict[str, Any]:
            return patching.patch(
                network,
                tokenizer,
                clean,
                corrupted,
                answer=answer,
                versus=versus,
                maps=maps,
                advance=advance,
            ).as_dict()

        return Patches(total, run)

    def heads(self, advance: Advance) -> dict[str, Any]:
        """Which heads are of which kind, as `gpt2 heads --json` says it."""
        if self._heads is None:
            from gpt2cli.analysis.heads import score_heads

            found = score_heads(self.network, self._model.tokenizer, advance=advance)
            named = {"least": LEAST, "heads": found.named(LEAST)}
            self._heads = {"seed": 0} | named | found.as_dict()
        return self._heads

    _heads: dict[str, Any] | None = None

    def _edits(self, plan: Interventions) -> Edits | None:
        """What a plan changes; the last one is remembered, since means and directions take long."""
        if plan != self._last_edits[0]:
            from gpt2cli.model.interventions import edits

            self._last_edits = plan, edits(self.network, plan, self._model.tokenizer)
        return self._last_edits[1]

    def _trace_at(
        self, ids: list[int], position: int, plan: Interventions, advance: Advance
    ) -> Trace:
        """What happens to one token; for it, those after it do not matter."""
        if (kept := self._trace(ids, plan, advance)) is not None:
            return kept.at(position)
        from gpt2cli.model.trace import trace

        return trace(self.network, ids[: position + 1], 1, self._edits(plan), advance)

    def _trace(self, ids: list[int], plan: Interventions, advance: Advance) -> Trace | None:
        """What happens to every token, remembered for other questions; None if it is too much."""
        size, key = self._bytes(len(ids)), (tuple(ids), plan)
        if size > MOST_KEPT:
            return None
        if (kept := self._traces.get(key)) is None:
            from gpt2cli.model.trace import trace

            kept = trace(self.network, ids, len(ids), self._edits(plan), advance)
            while self._traces and size + self._held > MOST_KEPT:
                self._traces.popitem(last=False)
            self._traces[key] = kept
        self._traces.move_to_end(key)
        return kept

    @property
    def _held(self) -> int:
        return sum(self._bytes(len(ids)) for ids, _ in self._traces)

    def _bytes(self, T: int) -> int:
        """What a trace of so many tokens takes."""
        config = self._model.config
        vectors = (5 * config.n_layers + 2) * config.emb_dim
        return 4 * T * (vectors + config.n_layers * config.n_heads * T)


def _plain(value: Any) -> Any:
    from gpt2cli.analysis.plain import plain

    return plain(value)


def _packed(numbers: NDArray) -> dict[str, Any]:
    """An array as fp32, of which JSON would make several times as many bytes."""
    data = base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    return {"shape": list(numbers.shape), "data": data}
