"""A row of a bulk run: its own fields, its prompt and the settings that it names."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2cli.config.fields import coerce
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError, did_you_mean, shown
from gpt2cli.files import decode_utf8, read_object
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.settings import token_ids
from gpt2cli.records import Given, Input, Record
from gpt2cli.sampling import bias
from gpt2cli.serving import openai
from gpt2cli.serving.choices import Answer
from gpt2cli.text.window import OVERFLOW

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel

PROMPT = "prompt"
# A row may give every setting but a constraint, which is no text or number.
KINDS = {
    f.name: str(f.type).removesuffix(" | None")
    for kind in (SamplingConfig, GenerationConfig)
    for f in fields(kind)
    if f.name not in ("sampling", "constraint")
} | {"overflow": "overflow"}


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of the input: `index` is its line from 0, `fields` are carried to the output.

    Where it cannot be used `error` says why. `answer` is what its line shows.
    """

    index: int
    fields: Mapping[str, Any]
    prompt: str | Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    error: str | None = None

    def request(self, seed: int) -> dict[str, Any]:
        """The row as `LoadedModel.complete` takes it, in a run with this seed.

        A row with an error has no prompt, so that it takes its turn as an error there.
        """
        own = self.settings.get("seed", row_seed(seed, self.index))
        return {**self.settings, "prompt": self.prompt, "seed": own}


def row_seed(seed: int, index: int) -> int:
    """The seed of a row that names none: the same in every run and shard; below 2³¹."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0] >> 1)


class Reader:
    """Makes rows of records. `given` names the settings of the run, which precede defaults.

    Raises `UsageError` where no row can have a prompt: a field or template that the table, or
    the first line, has nothing for.
    """

    def __init__(
        self,
        source: Input | Given,
        model: LoadedModel,
        *,
        field: str | None = None,
        template: str | None = None,
        given: Iterable[str] = (),
    ) -> None:
        self.source, self._model, self._given = source, model, frozenset(given)
        self.field = PROMPT if field is None else field
        self.template = None if template is None else Template(template)
        self._is_openai = is_openai(source)
        needed = self.template.names if self.template else [self.field]
        self._settings = KINDS.keys() - set(needed)
        if source.columns is not None:
            _check_fields(needed, source.columns, source.name)
        elif self._is_openai and (field or template) is not None:
            raise UsageError("OpenAI's lines name their prompts; leave out field and template")
        elif (field or template) is not None and (first := _object_or_none(source.first)):
            _check_fields(needed, list(first), f"the first line of {source.name}")

    def __call__(self, index: int, record: Record) -> Row:
        """The row of a record, with an error where it cannot be used."""
        own: dict[str, Any] = {}
        try:
            own = self._fields(record)
            return self._row(index, own)
        except UsageError as error:
            return Row(index, own, error=str(error))

    def _fields(self, record: Record) -> dict[str, Any]:
        if isinstance(record, list):
            columns = len(self.source.columns or ())
            raise UsageError(f"it has {len(record)} cells, where there are {columns} columns")
        if isinstance(record, Mapping):
            return {name: plain(value) for name, value in record.items()}
        text = decode_utf8(record, "it")
        if self.source.kind == "lines":
            return {PROMPT: text.removesuffix("\n").removesuffix("\r")}
        return read_object(text)

    def _row(self, index: int, own: dict[str, Any]) -> Row:
        if self._is_openai:
            request = openai.read(own, self._given)
            prompt = _checked_prompt(request.prompts[0], PROMPT)
            answer = request.answer_to(prompt, self._model.tokenizer)
            return Row(index, own, prompt, request.settings, answer)
        if self.template:
            prompt = _checked_prompt(self.template.fill(own), PROMPT)
        elif self.field not in own:
            raise UsageError(f"it has no field {self.field!r}{did_you_mean(self.field, own)}")
        else:
            prompt = _checked_prompt(own[self.field], self.field)
        if self.source.kind == "lines":
            return Row(index, own, prompt)
        settings = {name: own[name] for name in own if name in self._settings}
        if self.source.kind == "csv":
            settings = {name: _from_cell(KINDS[name], text) for name, text in settings.items()}
        return Row(index, own, prompt, self._checked_settings(settings))

    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those that are not null, in the types of the library."""
        given = {name: value for name, value in settings.items() if value is not None}
        return {name: self._checked(name, value) for name, value in given.items()}

    def _checked(self, name: str, value: Any) -> Any:
        kind = KINDS[name]
        if kind == "tuple[str, ...]":
            return _texts(name, value)
        if kind == "tuple[int, ...]":
            return token_ids(name, value)
        if kind.startswith("Mapping"):
            return self._biases(value)
        if kind == "overflow":
            if value not in OVERFLOW:
                raise UsageError(f"overflow must be slide or error, not {shown(value)}")
            return value
        if kind == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of whole numbers that has gaps
        return coerce(value, kind, name)

    def _biases(self, value: Any) -> dict[int, float]:
        """Biases by id, from those by token as `--bias` has them."""
        if not isinstance(value, Mapping):
            raise UsageError(f"bias must be an object of tokens and amounts, not {shown(value)}")
        return bias.resolve(
            bias.parse([f"{t}={v}" for t, v in value.items()]), self._model.tokenizer
        )


def is_openai(source: Input | Given) -> bool:
    """Whether a file holds OpenAI's batch lines, as its first line says."""
    return source.kind == "jsonl" and openai.is_request(_object_or_none(source.first))


class Template:
    """A text with the names of fields in braces; {{ is a brace.

    Raises `UsageError` for anything else in braces.
    """

    def __init__(self, text: str) -> None:
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UsageError(f"the template is not understood: {error}") from None
        if wrong := next((p for p in pieces if p[1] == "" or p[2] or p[3]), None):
            raise UsageError(
                f"the template must have names of fields in braces, not {_braces(wrong)}"
            )
        self.text = text
        self._pieces = [(literal, name) for literal, name, _, _ in pieces]
        self.names = [name for _, name in self._pieces if name is not None]
        if not self.names:
            raise UsageError("the template names no field; write one as {name}")

    def fill(self, own: Mapping[str, Any]) -> str:
        """The text for a row. Raises `UsageError` for a field that is absent or null."""
        return "".join(
            literal + ("" if name is None else self._value(own, name))
            for literal, name in self._pieces
        )

    def _value(self, own: Mapping[str, Any], name: str) -> str:
        if own.get(name) is None:
            hint = "" if name in own else did_you_mean(name, own)
            raise UsageError(f"it has nothing in the field {name!r} of the template{hint}")
        value = own[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _braces(piece: tuple[str, str | None, str | None, str | None]) -> str:
    _, name, spec, conversion = piece
    return f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"


def _check_fields(needed: Sequence[str], present: Sequence[str], where: str) -> None:
    for name in needed:
        if name not in present:
            near = did_you_mean(name, present)
            raise UsageError(
                f"{where} has no field {name!r}{near or '; it has ' + ', '.join(present[:12])}"
            )


def _object_or_none(record: Record | None) -> dict[str, Any] | None:
    try:
        return read_object(decode_utf8(record, "it")) if isinstance(record, bytes) else None
    except UsageError:
        return None


def _checked_prompt(value: Any, name: str) -> str | list[int]:
    """A text that is Unicode, or token ids."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name!r} is not valid Unicode text") from None
        return value
    if isinstance(value, list) and value and all(type(i) is int and i >= 0 for i in value):
        return value
    raise UsageError(f"{name!r} must be text or a list of token ids, not {shown(value)}")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name} must be text or a list of texts, not {shown(value)}")
    return tuple(texts)


def _from_cell(kind: str, text: str) -> Any:
    """The value of a setting in a CSV file; an empty cell gives none.

    Numbers, true and false are as in JSON, and so are lists and biases.
    """
    is_text = kind == "overflow" or (kind == "tuple[str, ...]" and not text.startswith("["))
    if not text:
        return None
    try:
        return text if is_text else json.loads(text)
    except (ValueError, RecursionError):
        return text


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: times and decimals as text, NaN as null."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None or isinstance(value, str | int) else str(value)
