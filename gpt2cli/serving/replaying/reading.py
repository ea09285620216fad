"""Files of records, whatever wrote them: each line one, or the whole file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2cli.errors import GPT2CLIError, UsageError, shown
from gpt2cli.files import decode_utf8, load_json
from gpt2cli.records import STDIN, Input, check_file
from gpt2cli.serving import openai, results
from gpt2cli.serving import rows as bulk_rows
from gpt2cli.serving.replaying import answers, generated, rows, tree
from gpt2cli.serving.replaying.record import NoRecord, NoText, Record, Refused
from gpt2cli.serving.replaying.rows import Run

BESIDE = ".run.json"  # what `gpt2 bulk` adds to the name of its output
ERROR = 300  # characters of one
KNOWN = "gpt2 generate --json, gpt2 bulk, gpt2 serve (with its request) and the page write records"


def read(name: str, run: Path | None = None) -> Iterator[Record | Refused]:
    """All records of a file, "-" for stdin, in order. `run` is the OUTPUT.run.json of its lines.

    A line that is none is `Refused`. Raises `UsageError` for a file that cannot be read.
    """
    found = _run(name, run)
    source = Input(name)
    if isinstance(source.first, bytes) and _parsed(source.first) is None:
        yield from _of_one(_all(source), found)
        return
    for number, line in source.records():
        place = f"{source.unit} {number + 1}"
        try:
            value = _parsed(line) if isinstance(line, bytes) else line
            yield from _records(value, place, found)
        except UsageError as error:
            yield Refused(place, error, not isinstance(error, NoText))


def _of_one(data: bytes, run: Run | None) -> Iterator[Record | Refused]:
    """The records of a file that is one value of JSON, in several lines."""
    try:
        value = load_json(decode_utf8(data, "it"))
    except (UsageError, ValueError) as error:
        yield Refused("the file", NoRecord(f"it is no JSON: {error}"))
        return
    try:
        for number, each in enumerate(value if isinstance(value, list) else [value]):
            name = f"record {number + 1}" if isinstance(value, list) else "the file"
            yield from _records(each, name, run)
    except UsageError as error:
        yield Refused("the file", error)


def _all(source: Input) -> bytes:
    """All of a file of lines, the first of which has been read."""
    return b"".join(line for _, line in source.records() if isinstance(line, bytes))


def _parsed(line: bytes) -> Any:
    """A value of JSON; None for what is none."""
    try:
        return load_json(decode_utf8(line, "it"))
    except (UsageError, ValueError):
        return None


def _run(name: str, given: Path | None) -> Run | None:
    """What the lines of a file have in common, if it is known."""
    beside = None if name == STDIN else Path(name + BESIDE)
    path = beside if given is None else given
    try:
        if path is None or (given is None and not path.is_file()):
            return None
        check_file(path)
        return Run(load_json(decode_utf8(path.read_bytes(), str(path))))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except GPT2CLIError as error:
        raise UsageError(f"{path}: {error}") from None


def _records(found: Any, name: str, run: Run | None) -> Sequence[Record | Refused]:
    """The records of one value. Raises `UsageError` for what is none."""
    if not isinstance(found, Mapping):
        raise NoRecord(f"it is no record, but {shown(found)}; {KNOWN}")
    found = {str(key): bulk_rows.plain(value) for key, value in found.items()}
    if tree.is_one(found):
        return list(tree.read(found))
    if answers.is_one(found):
        return answers.read(found, name)
    if openai.is_request(found) or "custom_id" in found:
        raise NoRecord(
            "it is a line of OpenAI's batches, whose prompt and settings are in another file: "
            'write {"request": …, "response": …} of an answer of gpt2 serve'
        )
    if answers.is_bare(found):
        return answers.read_bare(found)
    if rows.is_one(found) and not generated.is_one(found):
        return [rows.read(found, name, run)]
    if run is not None and results.has_failed(found):
        raise NoText(f"it failed when it was written: {found['error']}"[:ERROR])
    if generated.is_one(found):
        return [generated.read(found, name)]
    raise NoRecord(f"it is no record; {KNOWN}")
