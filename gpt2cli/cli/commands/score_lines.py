"""`gpt2 score --lines`: each line by itself, as JSON or passed on as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening
from gpt2cli.cli.grouped import Group
from gpt2cli.cli.io.inputs import read_lines, without_newline
from gpt2cli.cli.io.progress import line_progress
from gpt2cli.cli.io.terminal import Output, notice
from gpt2cli.cli.render import score_views
from gpt2cli.errors import UsageError
from gpt2cli.files import decode_utf8

if TYPE_CHECKING:
    from gpt2cli.analysis.scorer import Scorer
    from gpt2cli.analysis.scoring import Summary
    from gpt2cli.api import LoadedModel

TYPICAL_LINE = 32  # tokens


@dataclass(frozen=True)
class Lines(Group):
    """Line by line"""

    lines: Annotated[
        bool, typer.Option("--lines", help="Score each line by itself, as JSON per line.")
    ] = False
    max_perplexity: Annotated[
        float | None,
        typer.Option(metavar="N", help="With --lines: pass on lines of at most this perplexity."),
    ] = None
    min_perplexity: Annotated[
        float | None,
        typer.Option(metavar="N", help="With --lines: pass on lines of at least this perplexity."),
    ] = None
    field: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --lines: they are JSON objects; score this field."),
    ] = None

    @property
    def filters(self) -> bool:
        """Whether lines are passed on as they are, if they keep to the limits."""
        return self.max_perplexity is not None or self.min_perplexity is not None

    def check(self) -> None:
        """Raise `UsageError` for options without --lines, and for invalid limits."""
        if not self.lines and (self.filters or self.field is not None):
            raise UsageError("--max-perplexity, --min-perplexity and --field go with --lines")
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


def score_lines(
    model: LoadedModel, scorer: Scorer, files: Sequence[str], lines: Lines, *, verbose: bool
) -> None:
    """Print JSON per line; or, with a limit, the lines within it, unchanged."""
    from gpt2cli.analysis import scoring

    output, count, kept = Output(), 0, 0
    key = "text" if lines.field is None else lines.field
    opening.fetch(model)
    decoder = opening.open_decoder(model, scorer.cache_tokens(), verbose=verbose)
    with line_progress() as advance:
        for chunk in _groups(files, scoring.GROUP):
            records = [_read_line(x, count + i, lines.field) for i, x in enumerate(chunk, start=1)]
            ids = [scorer.encode([str(record[key])]) for record in records]
            found = scorer.score_texts(decoder, ids)
            lines_out = (
                _line_out(line, record, score.summary, lines)
                for line, record, score in zip(chunk, records, scoring.join(found), strict=True)
            )
            shown = [line for line in lines_out if line is not None]
            output.write_bytes(b"".join(shown))
            count, kept = count + len(chunk), kept + len(shown)
            advance(len(chunk))
    passed = f"{kept:,} of {count:,} lines passed on"
    what = passed if lines.filters else f"{count:,} lines scored"
    notice(f"{model.describe()}, {what}" if verbose else what, asked=verbose)


def _groups(files: Sequence[str], size: int) -> Iterator[list[bytes]]:
    """Up to `size` lines at a time, without waiting for more than have arrived."""
    for number, file in enumerate(files, start=1):
        for lines in read_lines(file):
            if number < len(files) and not lines[-1].endswith(b"\n"):
                lines[-1] += b"\n"  # the next file begins a new line
            for i in range(0, len(lines), size):
                yield lines[i : i + size]


def _read_line(line: bytes, number: int, field: str | None) -> dict[str, Any]:
    """A line as an object that holds its text, under "text" unless it is JSON already."""
    text = without_newline(decode_utf8(line, f"line {number}"))
    if field is None:
        return {"text": text}
    try:
        record = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise UsageError(f"line {number} is not JSON; --field is for JSON objects") from None
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise UsageError(f"line {number} has no text in a field {field!r}")
    return record


def _refuse(constant: str) -> None:
    """Raise `ValueError` for NaN and infinities, which Python accepts but JSON lacks."""
    raise ValueError(constant)


def _line_out(line: bytes, record: dict[str, Any], summary: Summary, lines: Lines) -> bytes | None:
    """A line's figures as JSON; or, with a limit, the line itself if within it."""
    if lines.filters:
        return line if lines.keep(summary.perplexity) else None
    figures = score_views.figures(summary)
    return (json.dumps(record | figures, ensure_ascii=False) + "\n").encode()
