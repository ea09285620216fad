"""`gpt2 score --lines`: each line by itself, as JSON or passed on as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.inputs import decode_utf8, read_lines, without_newline
from gpt2cli.cli.io.progress import line_progress
from gpt2cli.cli.io.terminal import Output, notice
from gpt2cli.cli.render import score_views
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.analysis.scoring import Summary
    from gpt2cli.cli.commands.score import Run

TYPICAL_LINE = 32  # tokens


def score_lines(
    run: Run,
    files: Sequence[str],
    below: float | None,
    above: float | None,
    field: str | None,
    verbose: bool,
) -> None:
    """JSON for every line; or, with a limit, those lines that keep to it, as they are."""
    from gpt2cli.analysis import scoring

    output, count, kept, scorer = Output(), 0, 0, run.scorer
    filtering = below is not None or above is not None
    key = "text" if field is None else field
    batch_size = scorer.batch_size(TYPICAL_LINE)
    decoder = run.open(batch_size, scorer.config.context_length, verbose)
    with line_progress() as advance:
        for chunk in _groups(files, scoring.GROUP):
            records = [_read_line(line, count + i, field) for i, line in enumerate(chunk, start=1)]
            ids = [scorer.encode([str(record[key])]) for record in records]
            found = scorer.stretches(decoder, ids, batch_size)
            lines_out = (
                _line_out(line, record, score.summary, below, above)
                for line, record, score in zip(chunk, records, scoring.join(found), strict=True)
            )
            shown = [line for line in lines_out if line is not None]
            output.write_bytes(b"".join(shown))
            count, kept = count + len(chunk), kept + len(shown)
            advance(len(chunk))
    what = f"{kept:,} of {count:,} lines passed on" if filtering else f"{count:,} lines scored"
    notice(f"{run.description}, {what}" if verbose else what, asked=verbose)


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
    """NaN and infinities are what Python reads, and JSON has not."""
    raise ValueError(constant)


def _line_out(
    line: bytes,
    record: dict[str, Any],
    summary: Summary,
    below: float | None,
    above: float | None,
) -> bytes | None:
    """Its figures as JSON; or, with a limit, the line itself if it keeps to it."""
    if below is None and above is None:
        figures = score_views.figures(summary)
        return (json.dumps(record | figures, ensure_ascii=False) + "\n").encode()
    return line if _is_within(summary.perplexity, below, above) else None


def _is_within(perplexity: float | None, below: float | None, above: float | None) -> bool:
    """Whether a perplexity keeps to the limits; that of too short a line is none."""
    if perplexity is None:
        return False
    return (below is None or perplexity < below) and (above is None or perplexity > above)
