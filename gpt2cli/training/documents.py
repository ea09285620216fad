"""What people train on: documents out of files and directories, one after another.

A text file is one document, or several with `<|endoftext|>` between them; so is the text of a
row. A row of JSONL, CSV or Parquet is a text, or a prompt and its completion. Of a file only some
lines, or one row group, are in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError, did_you_mean, shown
from gpt2cli.files import decode_utf8, read_object, text_pieces
from gpt2cli.records import Input, Record, check_file, decompressed, reading, suffix
from gpt2cli.text.vocabulary import END_OF_TEXT

ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md")  # of a directory
ROLES = ("text", "prompt", "completion")
_CHATS = ("messages", "conversations")
# The line break after a separator, which often stands on a line of its own, belongs to it.
_SEPARATOR = re.compile(re.escape(END_OF_TEXT) + r"(?:\r?\n)?")
_ENDS = re.compile(rf"(?:{re.escape(END_OF_TEXT)}\s*)+\Z|\A\s+\Z")


@dataclass(frozen=True, slots=True)
class Document:
    """A text in pieces, to be read once and before the next document, and the prompt before it.

    `where` says where it was found, for messages.
    """

    text: Iterable[str]
    prompt: str | None
    where: str


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of the fields of a row: of a text, or of a prompt and its completion.

    `pairs` says which of the two a row is; None where each row may be either.
    """

    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"
    pairs: bool | None = None

    @classmethod
    def parse(cls, renames: Sequence[str]) -> Fields:
        """From "NAME", which is the text's, or "text=NAME", "prompt=NAME", "completion=NAME".

        Raises `UsageError` for another role, or for those of both kinds.
        """
        names = {}
        for rename in renames:
            role, equals, name = rename.partition("=")
            role, name = (role, name) if equals else ("text", rename)
            if role not in ROLES or not name:
                raise UsageError(
                    f"field must be NAME, text=NAME, prompt=NAME or completion=NAME, not {rename!r}"
                    f"{did_you_mean(role, ROLES)}",
                    "field",
                )
            names[role] = name
        if "text" in names and len(names) > 1:
            raise UsageError("field must name a text, or a prompt and its completion", "field")
        return cls(**names, pairs="text" not in names if names else None)

    def of(self, row: Mapping[str, Any], table: bool) -> Sequence[str]:
        """The names of a row's text, or of its prompt and completion; the only column is the text.

        Raises `UsageError` if they are not there, or it is not clear which are meant.
        """
        if table and len(row) == 1 and self.pairs is None and not set(row) & {*_CHATS}:
            return [*row]
        is_pair = self.prompt in row and self.completion in row
        if self.pairs is None and is_pair and self.text in row:
            raise UsageError(
                f"it has a {self.text!r}, but also a {self.prompt!r} and a {self.completion!r}; "
                "tell by field which to learn from",
                "field",
            )
        if is_pair and self.pairs is not False:
            return [self.prompt, self.completion]
        if self.text in row and not self.pairs:
            return [self.text]
        raise self._missing(row)

    def _missing(self, row: Mapping[str, Any]) -> UsageError:
        if self.pairs is None and any(name in row for name in _CHATS):
            return UsageError(
                "it is a chat of messages, but GPT-2 has no chat template; give each answer as a "
                "completion, and as its prompt all that comes before it, written as you like"
            )
        wanted = [self.prompt, self.completion] if self.pairs else [self.text]
        missing = next(name for name in wanted if name not in row)
        pair = f", nor {self.prompt!r} and {self.completion!r}" if self.pairs is None else ""
        hint = did_you_mean(missing, row) or "; it has " + ", ".join(list(row)[:12])
        return UsageError(f"it has no {missing!r}{pair}{hint}; field renames them", "field")


class Documents:
    """The documents of some files and directories, in their order, as often as one likes.

    Of a directory those are the .txt and .md files in it, sorted. Each name may end in .gz or
    .zst. `empty` counts the files and rows without any text, once they are read. Raises
    `UsageError` for what cannot be read.
    """

    def __init__(self, names: Sequence[str | Path], fields: Fields | None = None) -> None:
        self.fields = fields or Fields()
        self.files = [file for name in names for file in _files(Path(name))]
        self.empty = 0

    def __iter__(self) -> Iterator[Document]:
        """Raises `UsageError` for a row or a text that cannot be used, naming it."""
        self.empty = 0
        for file in self.files:
            yield from self._rows(file) if suffix(file) in ROWS else self._texts(file)

    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change of all files, in ns."""
        found = []
        for file in self.files:
            with reading(file):
                stat = Path(file).stat()
            found.append((file, stat.st_size, stat.st_mtime_ns))
        return found

    def _texts(self, file: str) -> Iterator[Document]:
        with reading(file), open(file, "rb") as raw, decompressed(raw, file) as stream:
            yield from self._separated(_without_mark(text_pieces(stream, file)), file)

    def _rows(self, file: str) -> Iterator[Document]:
        source = Input(file)
        for number, record in source.records():
            where = f"{source.unit} {number + 1} of {file}"
            try:
                row = _row(record, source)
                names = self.fields.of(row, source.columns is not None)
                *prompt, text = [_text(row[name], name) for name in names]
            except UsageError as error:
                raise UsageError(f"{where}: {error}", *error.settings) from None
            if not prompt:
                yield from self._separated([text], where)
            elif completion := _ENDS.sub("", text):
                yield Document([completion], prompt[0], where)
            else:
                self.empty += 1

    def _separated(self, pieces: Iterable[str], where: str) -> Iterator[Document]:
        """The documents between the separators of a text."""
        is_empty = True
        for is_text, parts in groupby(_parts(pieces), lambda part: part is not None):
            text = _unless_blank(part for part in parts if part is not None) if is_text else None
            if text is not None:
                yield Document(text, None, where)
                is_empty = False
        self.empty += is_empty


def _files(path: Path) -> list[str]:
    """The files that a name stands for, as absolute names."""
    if not path.is_dir():
        check_file(path)
        return [str(path.absolute())]
    found = sorted(
        (inner.parts, str((path / inner).absolute()))
        for inner in (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        if suffix(inner.name) in TEXTS and not any(part.startswith(".") for part in inner.parts)
    )
    if not found:
        raise UsageError(f"there is no .txt or .md file in {path}; name other files one by one")
    for _, file in found:
        check_file(Path(file))
    return [file for _, file in found]


def _row(record: Record, source: Input) -> Mapping[str, Any]:
    """A record by the names of its fields. Raises `UsageError` where it is none."""
    if isinstance(record, list):
        columns = len(source.columns or ())
        raise UsageError(f"it has {len(record)} cells, where there are {columns} columns")
    return read_object(decode_utf8(record, "it")) if isinstance(record, bytes) else record


def _text(value: Any, name: str) -> str:
    """The text of a field, none for null. Raises `UsageError` for what is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{name!r} must be text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # a surrogate, which tables have in the place of other bytes, too
        return decode_utf8(value.encode("utf-8", "surrogatepass"), repr(name))
    return value


def _without_mark(pieces: Iterator[str]) -> Iterator[str]:
    """A text without the byte order mark at its beginning."""
    yield next(pieces, "").removeprefix("\ufeff")
    yield from pieces


def _parts(pieces: Iterable[str]) -> Iterator[str | None]:
    """The text of some whole lines, with None for each separator."""
    for piece in pieces:
        first, *others = _SEPARATOR.split(piece)
        if first:
            yield first
        for other in others:
            yield None
            if other:
                yield other


def _unless_blank(parts: Iterator[str]) -> Iterator[str] | None:
    """The same text, or None if it is whitespace alone."""
    seen = []
    for part in parts:
        seen.append(part)
        if not part.isspace():
            return chain(seen, parts)
    return None
