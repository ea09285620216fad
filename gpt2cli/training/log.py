"""The log of a run: a line for each report, as JSONL or, by the name of the file, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.files import append_to_file, read_file, write_file
from gpt2cli.training.state import Position
from gpt2cli.training.trainer import Report

LOG_FILE = "log.jsonl"
_COLUMNS = [f.name for f in fields(Report)]


class Log:
    """Reports in a file, each written at once; `records` are all of them so far.

    A run that goes on from a position writes what came later again, and what a kill kept from being
    written. Raises `UsageError` for a file
    that is no log, and `GPT2CLIError` where it cannot be written.
    """

    def __init__(self, path: Path, position: Position) -> None:
        self.path, self._is_csv = path, path.suffix.lower() == ".csv"
        known = self._read() if position.step and path.exists() else []
        self.records = [record for record in known if record["step"] <= position.step]
        if (last := position.report) and last not in self.records:
            self.records.append(last)
        header = self._line(_COLUMNS) if self._is_csv else ""
        write_file(path, (header + "".join(map(self._text, self.records))).encode())

    def write(self, report: Report) -> None:
        """One more report."""
        self.records.append(asdict(report))
        append_to_file(self.path, self._text(self.records[-1]))

    def _text(self, record: dict[str, Any]) -> str:
        if self._is_csv:
            return self._line(record[name] for name in _COLUMNS)
        return json.dumps(record) + "\n"

    def _line(self, cells: Iterable[Any]) -> str:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow(cells)
        return stream.getvalue()

    def _read(self) -> list[dict[str, Any]]:
        text = read_file(self.path)
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        try:
            if self._is_csv:
                rows = csv.DictReader(io.StringIO(whole))
                return [{k: json.loads(v.lower() or "null") for k, v in r.items()} for r in rows]
            records = [json.loads(line) for line in whole.splitlines()]
            return [record for record in records if record["step"] >= 0]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{self.path} is no log of a run; choose another log", "log") from None
