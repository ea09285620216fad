"""Lines of `gpt2 bulk`, with what OUTPUT.run.json beside them says of all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError, shown
from gpt2cli.files import load_json
from gpt2cli.records import Given
from gpt2cli.serving import results
from gpt2cli.serving.replaying import record
from gpt2cli.serving.replaying.record import MOST_SAMPLES, NoRecord, Place, Record, Written
from gpt2cli.serving.rows import KINDS, PROMPT, Reader, Template

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.request import GenerationConfig

_NEVER = ("seed", "bias", "logprobs", "prompt_logprobs")  # of the settings of all rows


class Run:
    """What OUTPUT.run.json says. Raises `NoRecord` for what is no such file."""

    def __init__(self, found: Any) -> None:
        facts = found.get("run") if isinstance(found, dict) else None
        if not isinstance(facts, dict) or not isinstance(facts.get("model"), str):
            raise NoRecord("it is not what gpt2 bulk writes beside its output")
        self.facts = facts

    @cached_property
    def place(self) -> Place:
        """The model and where it ran."""
        return record.place_of(self.facts)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Those of all rows."""
        plain = {
            name: self.facts[name]
            for name in KINDS
            if name not in _NEVER and self.facts.get(name) is not None
        }
        found = dict(record.settings(plain))
        found["constraint"] = record.constraint(self.facts.get("constraint"))
        if (bias := self.facts.get("bias")) is not None:
            found["bias"] = record.biases(bias)
        return {name: value for name, value in found.items() if value is not None}

    @property
    def field(self) -> str:
        """The name of the field that holds the prompt."""
        return PROMPT if self.facts.get("field") is None else record.text(self.facts, "field")

    @property
    def template(self) -> str | None:
        """What the prompt is made by, if by anything."""
        if self.facts.get("prompt_template") is None:
            return None
        return record.text(self.facts, "prompt_template")


def is_one(found: Mapping[str, Any]) -> bool:
    """Whether an object is such a line, in bulk's own format."""
    return {"completion", "finish_reason", "seed"} <= found.keys()


def read(found: Mapping[str, Any], name: str, run: Run | None) -> Record:
    """The record of a line. Raises `UsageError` for what is none."""
    if run is None:
        raise NoRecord(
            "it is a line of gpt2 bulk, whose model and settings are in the file OUTPUT.run.json: "
            "name that as run",
            "run",
        )
    seed = record.whole(found, "seed")
    needed = Template(run.template).names if run.template is not None else [run.field]
    if lost := [each for each in needed if each in results.OWN or each not in found]:
        raise NoRecord(f"its prompt is lost: it has no field {shown(lost[0])} as it was")
    own = {each: _typed(each, found[each]) for each in found if each not in results.OWN}
    record.settings({each: value for each, value in own.items() if each in KINDS})
    is_table = run.facts.get("format") == "parquet" and run.template is None
    source = Given(kind="lines" if run.facts.get("lines") else "jsonl")

    def prepare(model: LoadedModel) -> tuple[list[int], GenerationConfig]:
        names = {"field": None if run.template else run.field, "template": run.template}
        if is_table:
            own[run.field] = _as_tokens(own.get(run.field), found.get("prompt_tokens"))
        row = Reader(source, model, **names, given=run.settings)(0, own)
        if row.prompt is None:
            raise UsageError(row.error or "it has no prompt")
        settings = {**run.settings, **row.settings, "seed": seed, "logprobs": None}
        return model.prepare(row.prompt, {**settings, "prompt_logprobs": None})

    return Record(run.place, run.facts, prepare, _texts(found, name))


def _typed(name: str, value: Any) -> Any:
    """A setting's value, which in a table may be a text, or an object with gaps."""
    if name == "bias" and isinstance(value, dict):
        return {token: amount for token, amount in value.items() if amount is not None}
    is_text = name not in KINDS or KINDS[name] == "overflow"
    is_list = name in KINDS and KINDS[name] == "tuple[str, ...]"
    if is_text or not isinstance(value, str) or (is_list and not value.startswith("[")):
        return value
    return _unquoted(value) if value else None


def _as_tokens(prompt: Any, count: Any) -> Any:
    """The token ids that a column of texts holds as JSON, if they are as many as were read."""
    ids = _unquoted(prompt) if isinstance(prompt, str) and prompt.startswith("[") else None
    is_ids = isinstance(ids, list) and all(type(i) is int for i in ids) and len(ids) == count
    return ids if is_ids else prompt


def _unquoted(text: str) -> Any:
    """The value of JSON that a text holds; the text where it holds none."""
    try:
        return load_json(text)
    except ValueError:
        return text


def _texts(found: Mapping[str, Any], name: str) -> tuple[Written, ...]:
    """The samples of a line: each a text, or all a list, which a column of texts has as JSON."""
    completion, reason = found["completion"], found["finish_reason"]
    if isinstance(reason, str) and reason.startswith("[") and isinstance(completion, str):
        completion = _unquoted(completion)
    if not isinstance(completion, list):
        return (Written(name, 0, record.checked_text(completion, "completion")),)
    if not 0 < len(completion) <= MOST_SAMPLES:
        raise NoRecord(f"completion must hold 1 to {MOST_SAMPLES:,} texts")
    return tuple(
        Written(f"{name}, sample {i}", i, record.checked_text(each, "completion"))
        for i, each in enumerate(completion)
    )
