"""Files of records, one after another."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers import piped

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.records import Input

LINES = b'\xef\xbb\xbf{"prompt": "a"}\n\n{"prompt": "b"}\r\n{"prompt": "c"}'
RECORDS = [(0, b'{"prompt": "a"}\n'), (2, b'{"prompt": "b"}\r\n'), (3, b'{"prompt": "c"}')]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_lines_are_counted_and_blank_ones_left_out(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"in.jsonl{ending}"
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    file.write_bytes(pack(LINES))
    source = Input(str(file))
    assert source.first == RECORDS[0][1]
    assert list(source.records()) == RECORDS
    assert list(source.records()) == RECORDS  # as often as one likes


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_may_be_joined(tmp_path: Path, ending: str) -> None:
    pack = gzip.compress if ending == ".gz" else zstandard.compress
    file = tmp_path / f"in.txt{ending}"
    file.write_bytes(pack(b"one\n") + pack(b"two\n"))
    assert [line for _, line in Input(str(file), lines=True).records()] == [b"one\n", b"two\n"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_was_cut_off_is_an_error_after_its_good_lines(
    tmp_path: Path, ending: str
) -> None:
    text = b"".join(b"line %d of some\n" % i for i in range(50_000))
    pack = gzip.compress if ending == ".gz" else zstandard.compress
    file = tmp_path / f"in.txt{ending}"
    packed = pack(text)
    file.write_bytes(packed[: len(packed) // 2])
    records = Input(str(file), lines=True).records()
    assert next(records) == (0, b"line 0 of some\n")
    with pytest.raises(GPT2CLIError, match="is damaged"):
        list(records)
    file.write_bytes(b"no such format")
    with pytest.raises(GPT2CLIError, match="is damaged"):
        list(Input(str(file), lines=True).records())


def test_in_lines_an_empty_one_is_a_record(tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_bytes(b"one\n\nthree")
    assert list(Input(str(file), lines=True).records()) == [
        (0, b"one\n"),
        (1, b"\n"),
        (2, b"three"),
    ]


def test_a_table_has_columns_and_cells_with_newlines(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes('\ufefftitle,body\n"a ""b""","two\nlines"\n\nx,y,z\n,é\n'.encode())
    source = Input(str(file))
    assert source.columns == ["title", "body"]
    assert source.unit == "row"
    assert list(source.records()) == [
        (0, {"title": 'a "b"', "body": "two\nlines"}),
        (2, ["x", "y", "z"]),
        (3, {"title": "", "body": "é"}),
    ]
    file = tmp_path / "in.tsv.gz"
    file.write_bytes(gzip.compress(b"a\tb\n1,2\t3\n"))
    assert list(Input(str(file)).records()) == [(0, {"a": "1,2", "b": "3"})]
    file = tmp_path / "twice.csv"
    file.write_text("a,b,a\n")
    with pytest.raises(UsageError, match="two columns of the name 'a'"):
        Input(str(file))


def test_parquet_is_read_in_groups(tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    rows = [{"prompt": f"row {i}", "ids": [i, i + 1]} for i in range(1500)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=400)
    source = Input(str(file))
    assert source.columns == ["prompt", "ids"]
    assert list(source.records()) == list(enumerate(rows))


def test_stdin_is_read_once_and_its_first_line_too() -> None:
    with piped(b"\n" + LINES[3:]) as pipe, patch.object(sys, "stdin", pipe):
        source = Input("-")
        assert source.first == b'{"prompt": "a"}\n'
        assert source.first == b'{"prompt": "a"}\n'
        assert [line for _, line in source.records()] == [line for _, line in RECORDS]
        assert source.identity() is None


def test_what_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        Input(str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="cannot read"):
        Input(str(tmp_path))
    wrong = tmp_path / "wrong.parquet"
    wrong.write_text("no parquet")
    with pytest.raises(UsageError, match="is no Parquet file"):
        Input(str(wrong))


@pytest.mark.parametrize(("library", "name"), [("zstandard", "a.zst"), ("pyarrow", "a.parquet")])
def test_a_library_that_is_missing_is_named(tmp_path: Path, library: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    missing = {library: None, "compression": None, "compression.zstd": None}
    with (
        patch.dict(sys.modules, missing),
        pytest.raises(UsageError, match=rf"{library}: pip install 'gpt2cli\[bulk\]'"),
    ):
        Input(str(tmp_path / name))


def test_identity_tells_files_apart(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("one\n")
    before = Input(str(file)).identity()
    assert Input(str(file)).identity() == before
    file.write_text("two\n")
    assert Input(str(file)).identity() != before
