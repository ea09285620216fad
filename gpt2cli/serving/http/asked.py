"""What requests of the page say, read and checked; and how its answers show tokens."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import UsageError, did_you_mean, shown
from gpt2cli.serving import completions

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.text.tokenizer import Tokenizer

ROOT = "/page/v1/"
_PLAN = ("ablate", "ablate_with", "reference", "steer")
# Fields of a completion that mean nothing where tokens are shown one by one.
_ELSEWHERE = ("model", "user", "suffix", "stream", "stream_options", "best_of", "echo", "logprobs")
SETTINGS = tuple(name for name in completions.KNOWN if name not in (*_ELSEWHERE, "prompt"))


def check_fields(body: Mapping[str, Any], *names: str) -> None:
    """Raise `UsageError` for a field of another name."""
    for name in body:
        if name not in names:
            raise UsageError(f"unknown field {shown(name)}{did_you_mean(name, names)}")


def prompt_of(body: Mapping[str, Any], model: LoadedModel, name: str = "prompt") -> list[int]:
    """The tokens of a text, given as such or as text; the beginning of a document for an empty one.

    Raises `UsageError` for anything else.
    """
    given = body.get(name)
    is_ids = isinstance(given, list) and all(type(i) is int for i in given)
    if not (isinstance(given, str) or is_ids):
        raise UsageError(f"{name} must be a text or a list of token ids, not {shown(given)}", name)
    return model.ids(given)  # type: ignore[arg-type]


def whole_of(body: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A whole number. Raises `UsageError` for another."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(
            f"{name} must be a whole number from {least} to {most:,}, not {shown(value)}", name
        )
    return value


def plan_of(body: Mapping[str, Any]) -> Interventions:
    """The interventions under `plan`; none if it is missing. Raises `UsageError` for wrong ones."""
    plan = body.get("plan")
    if plan is None:
        return Interventions()
    if not isinstance(plan, dict):
        raise UsageError(f"plan must be an object, not {shown(plan)}", "plan")
    for name in plan:
        if name not in _PLAN:
            raise UsageError(f"plan has no {shown(name)}{did_you_mean(name, _PLAN)}", "plan")
    plan = {name: value for name, value in plan.items() if value is not None}
    for name in ("ablate", "steer"):
        if not isinstance(plan.get(name, []), list):
            raise UsageError(f"{name} must be a list, not {shown(plan[name])}", "plan")
    if not all(isinstance(one, dict) for one in plan.get("steer", [])):
        raise UsageError("steer must be a list of objects", "plan")
    return Interventions.of(**plan)


def named(token_id: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token in an answer: its `id` and `text`, and its `bytes` where that does not say them."""
    data = tokenizer.decode_bytes([token_id])
    try:
        return {"id": token_id, "text": data.decode()}
    except UnicodeDecodeError:
        encoded = b64encode(data).decode()
        return {"id": token_id, "text": data.decode(errors="replace"), "bytes": encoded}
