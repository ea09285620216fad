"""`gpt2 score --lines` and `--jsonl`: each line by itself, as JSON or passed on as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening
from gpt2cli.cli.grouped import Group
from gpt2cli.cli.io.inputs import read_lines, without_newline
from gpt2cli.cli.io.progress import count_progress
from gpt2cli.cli.io.terminal import Output, complain, notice
from gpt2cli.cli.render import score_views
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import decode_utf8, json_line, load_json

if TYPE_CHECKING:
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.analysis.scoring import Summary
    from gpt2cli.api import LoadedModel


@dataclass(frozen=True)
class Lines(Group):
    """Line by line"""

    lines: Annotated[
        bool, typer.Option("--lines", help="Score each line by itself, as JSON per line.")
    ] = False
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help="Score the text of each line's JSON object; one without is an error in the "
            "output, and exit code 1 in the end.",
        ),
    ] = False
    max_perplexity: Annotated[
        float | None,
        typer.Option(metavar="N", help="Pass on lines of at most this perplexity, unchanged."),
    ] = None
    min_perplexity: Annotated[
        float | None,
        typer.Option(metavar="N", help="Pass on lines of at least this perplexity, unchanged."),
    ] = None
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The field with the text of a JSON object; with --lines, all must have it. "
            "[default: text]",
        ),
    ] = None

    @property
    def name(self) -> str | None:
        """The option by which lines are scored, if they are."""
        return "--jsonl" if self.jsonl else "--lines" if self.lines else None

    @property
    def key(self) -> str:
        """The field that holds a line's text."""
        return "text" if self.field is None else self.field

    @property
    def filters(self) -> bool:
        """Whether lines are passed on as they are, if they keep to the limits."""
        return self.max_perplexity is not None or self.min_perplexity is not None

    def check(self) -> None:
        """Raise `UsageError` for options without --lines or --jsonl, and for invalid limits."""
        if self.lines and self.jsonl:
            raise UsageError("--lines and --jsonl are different files; give one of them")
        if not self.name and (self.filters or self.field is not None):
            raise UsageError(
                "--max-perplexity, --min-perplexity and --field go with --lines or --jsonl"
            )
        for name in ("max_perplexity", "min_perplexity"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise UsageError(f"{name} must be above 0, not {limit}", name)

    def keep(self, perplexity: float | None) -> bool:
        """Whether a perplexity is within the limits; a line too short to have one is not."""
        if perplexity is None:
            return False
        low, high = self.min_perplexity, self.max_perplexity
        return (high is None or perplexity <= high) and (low is None or perplexity >= low)


@dataclass(slots=True)
class _Row:
    """A line, the object that it is or becomes, and its text; or why it has none."""

    line: bytes
    record: dict[str, Any]
    text: str = ""
    error: str | None = None


@dataclass(slots=True)
class _Count:
    lines: int = 0
    kept: int = 0
    errors: int = 0


def score_lines(
    model: LoadedModel, scorer: Scorer, files: Sequence[str], lines: Lines, *, verbose: bool
) -> None:
    """Print JSON per line; or, with a limit, the lines within it, unchanged.

    Raises `GPT2CLIError` at the end if a line of JSONL had no text.
    """
    from gpt2cli.analysis import scoring

    output, count, number = Output(), _Count(), 0
    decoder = opening.open_decoder(model, scorer.cache_tokens(), verbose=verbose)
    with count_progress("lines", written=True) as advance:
        for arrived in _arriving(files):
            numbered = enumerate(arrived, number + 1)
            # Blank lines are texts, but no rows.
            rows = [_read(x, i, lines) for i, x in numbered if lines.lines or x.strip()]
            ids = [scorer.encode([row.text]) if row.error is None else [] for row in rows]
            found = scoring.join(scorer.score_texts(decoder, ids))
            for row, score in zip(rows, found, strict=True):
                _write(output, row, score.summary, lines, count)
                advance(1)
            number += len(arrived)
    passed = f"{count.kept:,} of {count.lines:,} lines passed on"
    what = passed if lines.filters else f"{count.lines:,} lines scored"
    notice(f"{model.describe()}, {what}" if verbose else what, asked=verbose)
    if count.errors:
        raise GPT2CLIError(f"{count.errors:,} of {count.lines:,} lines could not be scored")


def _arriving(files: Sequence[str]) -> Iterator[list[bytes]]:
    """Lines as they arrive, so that none is answered only when the next has come."""
    for number, file in enumerate(files, start=1):
        for lines in read_lines(file):
            if number < len(files) and not lines[-1].endswith(b"\n"):
                lines[-1] += b"\n"  # the next file begins a new line
            yield lines


def _read(line: bytes, number: int, lines: Lines) -> _Row:
    """A line's text. Raises `UsageError` if it has none, or with --jsonl returns the error."""
    row = _Row(line, {})
    try:
        text = without_newline(decode_utf8(line, f"line {number}"))
        if not lines.jsonl and lines.field is None:
            return _Row(line, {"text": text}, text)
        row.record = _parse(text, number, lines)
        row.text = _text_of(row.record, lines.key, number)
    except UsageError as error:
        if not lines.jsonl:
            raise
        row.error = str(error)
    return row


def _parse(text: str, number: int, lines: Lines) -> dict[str, Any]:
    try:
        record = load_json(text)
    except ValueError:
        hint = "" if lines.jsonl else "; --field is for JSON objects"
        raise UsageError(f"line {number} is not JSON{hint}") from None
    if not isinstance(record, dict):
        raise UsageError(f"line {number} is no JSON object")
    return record


def _text_of(record: dict[str, Any], key: str, number: int) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise UsageError(f"line {number} has no text in a field {key!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"line {number} has half a character in its field {key!r}") from None
    return text


def _write(output: Output, row: _Row, summary: Summary, lines: Lines, count: _Count) -> None:
    """A line's figures or error as JSON; or, with a limit, the line itself if within it."""
    count.lines += 1
    if row.error is not None:
        count.errors += 1
    if not lines.filters:
        result = score_views.figures(summary) if row.error is None else {"error": row.error}
        output.write_bytes(json_line(row.record | result))
    elif row.error is not None:
        complain(row.error)
    elif lines.keep(summary.perplexity):
        count.kept += 1
        output.write_bytes(row.line)
