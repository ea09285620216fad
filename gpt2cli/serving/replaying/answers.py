"""Answers of `gpt2 serve`, each beside its request: {"request": {…}, "response": {…}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import shown
from gpt2cli.serving import completions
from gpt2cli.serving.completions import MOST_TOKENS, Request
from gpt2cli.serving.replaying import record
from gpt2cli.serving.replaying.record import MOST_SAMPLES, NoRecord, Record, Written
from gpt2cli.system.precision import PRECISIONS

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.request import GenerationConfig

ENGINES = ("native", "NumPy", "PyTorch")
_LISTS = ("logprobs", "echo", "stream", "stream_options", "user")  # change no token


def is_one(found: Mapping[str, Any]) -> bool:
    """Whether an object is such a pair."""
    return "request" in found and "response" in found


def is_bare(found: Mapping[str, Any]) -> bool:
    """Whether an object is an answer without its request."""
    return found.get("object") == "text_completion" or "choices" in found


def read_bare(found: Mapping[str, Any]) -> Sequence[Record]:
    """Raises `NoRecord`, which says what is missing."""
    missing = [each for each in ("model", "system_fingerprint") if each not in found]
    too = f"; it lacks {' and '.join(missing)}, too" if missing else ""
    raise NoRecord(
        "it is an answer of /v1/completions without its request, which has the prompt and the "
        f'settings: write {{"request": …, "response": …}}{too}'
    )


def read(found: Mapping[str, Any], name: str) -> Sequence[Record]:
    """A record for each prompt of a request. Raises `UsageError` for what is none."""
    body, response = (record.mapping(found[key], key) for key in ("request", "response"))
    if "error" in response:
        raise NoRecord("the response is an error, and holds no text")
    facts = _facts(response)
    plain = {key: value for key, value in body.items() if key not in _LISTS}
    request = completions.read(plain, {"max_tokens"})
    if not request.answer.asked:
        raise NoRecord("the request asked for no tokens, so there is nothing to write again")
    n, best_of = request.answer.n or 1, int(request.settings["samples"])
    if best_of > MOST_SAMPLES:
        raise NoRecord(f"a prompt may have up to {MOST_SAMPLES:,} texts, not {best_of:,}")
    choices = _choices(response, len(request.prompts) * n)
    echoes = body.get("echo") is True
    place = record.place_of(facts)
    return [
        Record(
            place,
            facts,
            _Preparing(request, i, choices[i * n]),
            tuple(
                _written(f"{name}, choice {i * n + k}", k, choices[i * n + k], request, i, echoes)
                for k in range(n)
            ),
            None,
            request.answer if best_of > n else None,
            best_of,
        )
        for i in range(len(request.prompts))
    ]


def _facts(response: Mapping[str, Any]) -> dict[str, Any]:
    """The model's, from the fingerprint that `Service` makes: version-engine-precision-adapters."""
    model = record.text(response, "model", record.LONGEST_NAME)
    fingerprint = record.text(response, "system_fingerprint", record.LONGEST_NAME)
    version, _, rest = fingerprint.partition("-")
    engine, _, rest = rest.partition("-")
    precision, _, adapters = rest.partition("-")
    if engine not in ENGINES or precision not in PRECISIONS:
        raise NoRecord(f"system_fingerprint is none of gpt2 serve: {shown(fingerprint)}")
    return {
        "model": model,
        "version": version,
        "engine": engine,
        "precision": precision,
        "adapters": [adapters] if adapters else [],
    }


def _choices(response: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The choices, in the order of their numbers."""
    found = response.get("choices")
    if not isinstance(found, list) or len(found) != count:
        raise NoRecord(f"the response must have {count} choices, as its request asks for")
    ordered = {record.whole(record.mapping(c, "a choice"), "index"): c for c in found}
    if ordered.keys() != set(range(count)):
        raise NoRecord("the choices of the response are not numbered from 0")
    return [ordered[i] for i in range(count)]


def _written(
    name: str, k: int, choice: Mapping[str, Any], request: Request, i: int, echoes: bool
) -> Written:
    text = record.text(choice, "text")
    if echoes and isinstance(prompt := request.prompts[i], str):
        if not text.startswith(prompt):
            raise NoRecord("a text does not begin with its prompt, which it echoes")
        text = text[len(prompt) :]
    elif echoes:
        raise NoRecord("an echo of token ids cannot be told from the text after it")
    return Written(name, k, text)


class _Preparing:
    """Makes ready one prompt of a request, as a server does."""

    def __init__(self, request: Request, i: int, choice: Mapping[str, Any]) -> None:
        seed = request.settings.get("seed")
        self._seed = record.whole(choice, "seed") if seed is None else seed
        self._request, self._i = request, i

    def __call__(self, model: LoadedModel) -> tuple[list[int], GenerationConfig]:
        """What the model reads, and the settings."""
        ids = model.ids(self._request.prompts[self._i])
        room = max(1, model.config.context_length - len(ids))
        usual = {"max_tokens": min(MOST_TOKENS, room), "overflow": "error"}
        settings = {**usual, **self._request.settings, "seed": self._seed}
        return model.prepare(ids, settings)
