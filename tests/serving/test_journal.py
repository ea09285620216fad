"""The output as a journal: whole lines, whatever happens."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from unittest.mock import patch

import pytest

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.serving.journal import Journal, Place, scan


@pytest.mark.parametrize("torn", [b"", b"{", b'{"row": 5}', b"x" * 200_000])
def test_a_torn_line_is_dropped_and_the_next_takes_its_place(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"{}\n" * 3 + torn)
    assert scan(path, ordered=True).count == 3
    with Journal(path) as journal:
        assert path.read_bytes() == b"{}\n" * 3
        journal.write(b'{"a": 1}\n')
        assert path.read_bytes() == b'{}\n{}\n{}\n{"a": 1}\n'  # at once


def test_a_file_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"x" * 100_000)
    with Journal(path):
        assert path.read_bytes() == b""


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path, write = tmp_path / "out.jsonl", os.write

    def until_full(file: int, data: memoryview) -> int:
        if os.fstat(file).st_size >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:3])

    with Journal(path) as journal:
        journal.write(b"{}\n")
        with (
            patch.object(os, "write", until_full),
            pytest.raises(GPT2CLIError, match="No space left"),
        ):
            journal.write(b'{"a": 1}\n')
    assert path.read_bytes() == b"{}\n"


def test_an_interruption_within_a_line_leaves_whole_lines(tmp_path: Path) -> None:
    path, write = tmp_path / "out.jsonl", os.write

    def interrupted(file: int, data: memoryview) -> int:
        write(file, data[:4])
        raise KeyboardInterrupt

    def append() -> None:
        with Journal(path) as journal:
            journal.write(b"{}\n")
            with patch.object(os, "write", interrupted):
                journal.write(b'{"a": 1}\n')

    with pytest.raises(KeyboardInterrupt):
        append()
    assert path.read_bytes() == b"{}\n"


def test_a_scan_tells_which_rows_are_there_and_which_failed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"row": 4}\n{"row": 1, "error": "x"}\n{"row": 0, "error": null}\n')
    found = scan(path, ordered=False)
    assert (found.count, found.errors) == (3, 1)
    assert [found.has(i) for i in range(6)] == [True, True, False, False, True, False]
    assert [i for i in range(6) if found.has_failed(i)] == [1]
    found = scan(path, ordered=True)
    assert [found.has(i) for i in range(4)] == [True, True, True, False]
    assert scan(tmp_path / "none", ordered=True).count == 0


def test_a_line_that_no_run_wrote_is_found(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"{}\nnope\n{}\n")
    with pytest.raises(GPT2CLIError, match="damaged at line 2"):
        scan(tmp_path / "out.jsonl", ordered=True)
    with pytest.raises(GPT2CLIError, match="damaged at line 1"):
        scan(tmp_path / "out.jsonl", ordered=False)  # which row is it?


def test_a_place_is_locked_for_one_run(tmp_path: Path) -> None:
    place = Place(tmp_path / "out.jsonl", "jsonl")
    with (
        place.locked(),
        pytest.raises(GPT2CLIError, match="another run is writing"),
        Place(tmp_path / "out.jsonl", "jsonl").locked(),
    ):
        pass
    with place.locked():
        pass


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "in.jsonl": "it is read, too",
        "none/out": "is no directory",
        ".": "it is a directory",
        "pipe": "no regular file",
    }.items():
        with pytest.raises(UsageError, match=re.escape(reason)):
            Place(tmp_path / name, "jsonl").check(str(tmp_path / "in.jsonl"))


def test_a_damaged_run_file_is_an_error(tmp_path: Path) -> None:
    place = Place(tmp_path / "out.jsonl", "jsonl")
    assert place.read_run() is None
    for data in (b"{", b"[]", b"{}", b'{"run": {}}'):
        place.run_file.write_bytes(data)
        with pytest.raises(GPT2CLIError, match="--overwrite"):
            place.read_run()
