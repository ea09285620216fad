"""What a bulk run writes: a line of JSON per row, and files that are made of these lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import atomic, json_line
from gpt2cli.records import compressed, is_compressed, pyarrow, suffix
from gpt2cli.serving import choices, openai

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.generation.record import Completion
    from gpt2cli.serving.rows import Row

FORMATS = ("jsonl", "openai", "parquet")
OWN = (
    *("completion", "finish_reason", "prompt_tokens", "completion_tokens"),
    *("logprobs", "prompt_logprobs", "error"),
)
_GROUP = 1024  # rows of Parquet in memory at once


def choose_format(asked: str | None, name: str, openai_in: bool) -> str:
    """The format of a file of this name, "-" for stdout. Raises `UsageError` for a wrong one."""
    if asked is not None and asked not in FORMATS:
        raise UsageError(f"format must be jsonl, openai or parquet, not {asked!r}", "format")
    chosen = asked or ("parquet" if suffix(name) == ".parquet" else "")
    if chosen == "parquet":
        if name == "-":
            raise UsageError("Parquet is written into a file; name one with --output")
        if is_compressed(name):
            raise UsageError(f"{name} cannot be: Parquet compresses by itself")
        pyarrow()
    return chosen or ("openai" if openai_in else "jsonl")


def is_converted(name: str, format: str) -> bool:
    """Whether a file is made of the lines at the end, since none can be appended to it."""
    return format == "parquet" or is_compressed(name)


class Lines:
    """Makes the line of a row; in a run that is not `ordered` it has the row's number."""

    def __init__(self, format: str, model: LoadedModel, unit: str, *, ordered: bool) -> None:
        self._is_openai, self._model = format == "openai", model
        self._unit, self._ordered = unit, ordered

    def line(self, row: Row, found: Completion) -> bytes:
        """A line of JSON with its newline."""
        return json_line(self.fields(row, found))

    def fields(self, row: Row, found: Completion) -> dict[str, Any]:
        """What it holds; an error begins with the number of the row from 1."""
        error = row.error or (None if found.error is None else str(found.error))
        error = None if error is None else f"{self._unit} {row.index + 1}: {error}"
        make = self._request if self._is_openai else self._plain
        record = make(row, found, error)
        return record if self._ordered else record | {"row": row.index}

    def _request(self, row: Row, found: Completion, error: str | None) -> dict[str, Any]:
        name = row.fields.get("custom_id")
        if error is not None:
            return openai.failure(row.index, name, error)
        name = str(row.index) if name is None else name
        return openai.result(row.index, name, self._body(row, found))

    def _body(self, row: Row, found: Completion) -> dict[str, Any]:
        model, answer = self._model, row.answer
        prompt = model.ids(row.prompt or "") if found.prompt_logprobs else []
        return choices.completion(
            f"cmpl-{row.index}",
            0,
            model.name,
            choices.choices_of(found, answer, prompt, model.tokenizer),
            choices.usage(found.prompt_tokens, choices.written(found, answer)),
        )

    def _plain(self, row: Row, found: Completion, error: str | None) -> dict[str, Any]:
        """The row's own fields and the result, which precedes what has its names."""
        own = {name: value for name, value in row.fields.items() if name not in OWN}
        if error is not None:
            return own | {"error": error}
        values = [
            {
                "completion": row.answer.echo + sample.text,
                "finish_reason": sample.finish_reason,
                "completion_tokens": len(sample.token_ids),
            }
            | ({"logprobs": [one.as_dict() for one in sample.logprobs]} if sample.logprobs else {})
            for sample in choices.shown_of(found, row.answer)
        ]
        result: dict[str, Any] = values[0]
        if len(values) > 1:
            result = {name: [value.get(name) for value in values] for name in values[0]}
        if found.prompt_logprobs:
            result["prompt_logprobs"] = [p and p.as_dict() for p in found.prompt_logprobs]
        return own | result | {"prompt_tokens": found.prompt_tokens, "seed": found.seed}


def has_failed(record: Mapping[str, Any]) -> bool:
    """Whether a line of either format is of a row with an error."""
    return record.get("error") is not None


def convert(lines: Path, target: Path, format: str) -> None:
    """Make a file of lines: Parquet, or the lines compressed. It appears whole or not at all."""
    try:
        with atomic(target) as temporary:
            if format == "parquet":
                _to_parquet(lines, temporary)
                return
            with (
                lines.open("rb") as source,
                temporary.open("wb") as file,
                compressed(file, target.name) as stream,
            ):
                for line in source:
                    stream.write(line)
    except OSError as error:
        raise GPT2CLIError(f"cannot write {target}: {error.strerror or error}") from None


def _to_parquet(lines: Path, target: Path) -> None:
    """Twice through the lines: for the types of all columns, then for their values."""
    library = pyarrow()
    types: dict[str, Any] = {}
    for group in _groups(lines):
        for name in dict.fromkeys(name for record in group for name in record):
            found = _type(library, [record.get(name) for record in group])
            types[name] = _common(library, types.get(name, library.null()), found)
    schema = library.schema(list(types.items()))
    with library.parquet.ParquetWriter(target, schema) as writer:
        for group in _groups(lines):
            columns = [_column(library, group, field) for field in schema]
            writer.write_table(library.Table.from_arrays(columns, schema=schema))


def _groups(lines: Path) -> Iterator[list[dict[str, Any]]]:
    with lines.open("rb") as stream:
        while group := [json.loads(line) for line in islice(stream, _GROUP)]:
            yield group


def _type(library: Any, values: Iterable[Any]) -> Any:
    """The type of some values; text if they have none in common that Parquet has, too."""
    try:
        found = library.array(values).type
    except (library.ArrowException, OverflowError, UnicodeEncodeError):
        return library.string()
    return found if _fits_parquet(library, found) else library.string()


def _fits_parquet(library: Any, kind: Any) -> bool:
    """Whether no object within it is empty."""
    if library.types.is_struct(kind):
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        return bool(inner) and all(_fits_parquet(library, each) for each in inner)
    return not library.types.is_list(kind) or _fits_parquet(library, kind.value_type)


def _common(library: Any, one: Any, other: Any) -> Any:
    """The type of two groups of a column; text if they have none in common."""
    schemas = [library.schema([("", kind)]) for kind in (one, other)]
    try:
        return library.unify_schemas(schemas, promote_options="permissive").field(0).type
    except library.ArrowException:
        return library.string()


def _column(library: Any, group: list[dict[str, Any]], field: Any) -> Any:
    """A column of a group; in one of text what is none is written as JSON."""
    values = [record.get(field.name) for record in group]
    if library.types.is_floating(field.type):
        values = [None if value is None else float(value) for value in values]
    elif field.type == library.string():
        values = [None if value is None else _text(value) for value in values]
    return library.array(values, field.type)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()
