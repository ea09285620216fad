"""A file that is mapped ahead is the file that is read, and its pages are there by then."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from gpt2cli import api
from gpt2cli.weights import layout, mapping

SIZE = 3_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    return path


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory."""
    mapped, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):
            mapped = rest[-1] == str(path)
        elif mapped and name == "Rss:":
            found += int(rest[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to")
def test_all_pages_of_a_file_come_unasked(file: Path) -> None:
    mapping.begin(file)
    end = time.monotonic() + 30
    while resident(file) * 1024 < SIZE and time.monotonic() < end:
        time.sleep(0.01)
    if not resident(file):
        pytest.skip("this Linux is older than 5.14")
    assert resident(file) * 1024 >= SIZE


def test_what_was_begun_is_what_is_opened_and_only_once(file: Path) -> None:
    mapping.begin(file)
    first, second = mapping.open_mapped(file), mapping.open_mapped(file)
    assert first is not second
    assert bytes(first) == bytes(second) == file.read_bytes()


def test_what_is_written_there_never_reaches_the_file(file: Path) -> None:
    before = file.read_bytes()
    mapping.begin(file)
    mapped = mapping.open_mapped(file)
    mapped[:4] = b"null"
    assert file.read_bytes() == before


def test_a_file_that_was_replaced_meanwhile_is_read_as_it_is_now(file: Path) -> None:
    mapping.begin(file)
    other = file.with_name("other")
    other.write_bytes(b"\1" * SIZE)
    os.replace(other, file)
    assert bytes(mapping.open_mapped(file)) == b"\1" * SIZE


@pytest.mark.parametrize("kind", ["none", "empty", "directory", "fifo"])
def test_what_is_no_file_of_weights_is_left_to_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(mapping, "_begun", {})
    path = tmp_path / "weights"
    make = {"empty": path.touch, "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}
    make.get(kind, lambda: None)()
    mapping.begin(path)
    assert not mapping._begun


@pytest.mark.parametrize(("precision", "begun"), [("fp32", True), ("int8", False)])
def test_only_weights_that_are_used_as_they_are_come_ahead(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch, precision: str, begun: bool
) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(mapping, "begin", paths.append)
    monkeypatch.setattr("gpt2cli.decoders.opening.check_engine", lambda _: None)
    api.load(str(tiny_directory), device="cpu", precision=precision, fetch=False).read_ahead()
    assert paths == ([tiny_directory / layout.WEIGHTS] if begun else [])
