"""Records of `gpt2 generate --json`: an object per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpt2cli.config.fields import build
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import shown
from gpt2cli.serving.replaying import record
from gpt2cli.serving.replaying.record import Draft, NoRecord, Record, Written
from gpt2cli.text.window import OVERFLOW

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.request import GenerationConfig

_PLAIN = ("max_tokens", "min_tokens", "ignore_eos", "length_penalty", "beams")
NEEDED = ("prompt", "text", "model", "seed", "sampling", "max_tokens")


def is_one(found: Mapping[str, Any]) -> bool:
    """Whether an object is such a record, whole or not."""
    return "sampling" in found or {"prompt", "text", "token_ids"} <= found.keys()


def read(found: Mapping[str, Any], name: str) -> Record:
    """The record of an object. Raises `UsageError` for what is none."""
    for needed in NEEDED:
        if needed not in found:
            raise NoRecord(f"it has no {needed}")
    settings = _settings(found)
    prompt = _prompt(found)
    sample = record.whole(found, "sample", 0)
    overflow = found.get("overflow", OVERFLOW[0])

    def prepare(model: LoadedModel) -> tuple[list[int], GenerationConfig]:
        config = model.configure(
            **settings,
            bias=record.biases(found.get("bias") or {}),
            constraint=record.constraint(found.get("constraint")),
        )
        return model.fit(model.ids(prompt), config.max_tokens, overflow), config

    finish = found.get("finish_reason")
    written = Written(
        name,
        sample,
        record.text(found, "text"),
        record.ids(found["token_ids"], "token_ids") if "token_ids" in found else None,
        finish if isinstance(finish, str) else None,
        finish is None,
    )
    facts = dict(found) | {"draft": (found.get("draft") or None) and _draft(found["draft"]).name}
    draft = _draft(found["draft"]) if found.get("draft") else None
    return Record(record.place_of(found), facts, prepare, (written,), draft)


def _settings(found: Mapping[str, Any]) -> dict[str, Any]:
    rules = record.mapping(found["sampling"], "sampling")
    sampling = build(SamplingConfig, record.settings(rules), "sampling")
    record.settings(asdict(sampling))
    plain = record.settings({name: found[name] for name in _PLAIN if found.get(name) is not None})
    lists = record.settings(
        {name: _list(found, name) for name in ("stop", "dry_breakers") if name in found}
    )
    samples = record.whole(found, "samples", 1)
    beams = {"samples": samples} if found.get("beams") is not None else {}
    return {"sampling": sampling, "seed": record.whole(found, "seed"), **plain, **lists, **beams}


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    value = found[name]
    if not isinstance(value, list):
        raise NoRecord(f"{name} must be a list of texts, not {shown(value)}")
    return value


def _prompt(found: Mapping[str, Any]) -> str | list[int]:
    """The tokens that were read; of an older record, the text that they were made of."""
    if found.get("prompt_token_ids") is None:
        return record.text(found, "prompt")
    return list(record.ids(found["prompt_token_ids"], "prompt_token_ids"))


def _draft(value: Any) -> Draft:
    given = record.mapping(value, "draft")
    return Draft(record.text(given, "name", record.LONGEST_NAME), record.whole(given, "tokens"))
