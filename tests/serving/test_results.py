"""What is written for a row, and files made of such lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from bulk_runs import read_rows, run, write_rows

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import json_line
from gpt2cli.serving import results
from gpt2cli.serving.rows import row_seed


def test_a_row_keeps_its_fields_beside_the_result(tmp_path: Path) -> None:
    own = {"id": "é", "prompt": "a", "completion": "old", "error": "old", "meta": {"x": [1]}}
    rows = [own, {"prompt": "b", "seed": 5, "samples": 2}, {"prompt": "c", "logprobs": 1}]
    run(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", seed=3)
    one, two, three = read_rows(tmp_path / "out.jsonl")
    assert {name: one[name] for name in ("id", "prompt", "meta")} == {
        name: own[name] for name in ("id", "prompt", "meta")
    }
    assert one.keys() == {
        *("id", "prompt", "meta", "completion", "finish_reason"),
        *("prompt_tokens", "completion_tokens", "seed"),
    }
    assert one["completion"] != "old"
    assert (one["seed"], two["seed"]) == (row_seed(3, 0), 5)
    assert (one["prompt_tokens"], one["completion_tokens"]) == (1, 8)
    assert [len(two[name]) for name in ("completion", "finish_reason", "completion_tokens")] == [
        2,
        2,
        2,
    ]
    assert "logprobs" not in two
    assert three["logprobs"][0]["token"] == three["completion"][0]
    assert "é" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_text_that_is_no_unicode_is_passed_on_escaped(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ['{"prompt": "a", "name": "\\ud800é"}'])
    assert run(source, tmp_path / "out.jsonl").errors == 0
    [row] = read_rows(tmp_path / "out.jsonl")
    assert row["name"] == "\ud800é"
    assert run(source, tmp_path / "out.parquet").errors == 0
    assert pq.read_table(tmp_path / "out.parquet")["name"].to_pylist() == ["?é"]


@pytest.mark.parametrize(
    ("asked", "name", "openai_in", "chosen"),
    [
        (None, "a.jsonl", False, "jsonl"),
        (None, "a.jsonl", True, "openai"),
        (None, "-", True, "openai"),
        (None, "a.parquet", True, "parquet"),
        ("jsonl", "a.parquet", True, "jsonl"),
        ("openai", "a", False, "openai"),
    ],
)
def test_the_format_follows_the_names(
    asked: str | None, name: str, openai_in: bool, chosen: str
) -> None:
    assert results.choose_format(asked, name, openai_in) == chosen


@pytest.mark.parametrize(
    ("asked", "name"), [("csv", "a"), ("parquet", "-"), (None, "a.parquet.gz")]
)
def test_a_format_that_cannot_be_is_refused(asked: str | None, name: str) -> None:
    with pytest.raises(UsageError):
        results.choose_format(asked, name, False)


def parquet_of(tmp_path: Path, rows: list[dict[str, Any]]) -> pa.Table:
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b"".join(map(json_line, rows)))
    results.convert(lines, tmp_path / "out.parquet", "parquet")
    return pq.read_table(tmp_path / "out.parquet")


def test_parquet_has_a_type_for_each_column_whatever_the_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"n": i, "text": "a", "ids": [i], "mixed": i, "object": {}, "sometimes": None}
        for i in range(1500)
    ]
    rows[1200] |= {"n": 0.5, "mixed": "text", "object": {"a": 1}, "sometimes": [{"b": 2**70}]}
    rows[1201] |= {"mixed": [1]}
    rows.append({"late": True})
    table = parquet_of(tmp_path, rows)
    assert table.num_rows == len(rows)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    assert columns["n"] == [row.get("n") for row in rows]
    assert columns["ids"][7] == [7]
    assert columns["mixed"][1199:1202] == ["1199", "text", "[1]"]
    assert columns["object"][1199:1201] == ["{}", '{"a": 1}']
    assert json.loads(columns["sometimes"][1200]) == [{"b": 2**70}]
    assert columns["late"] == [None] * 1500 + [True]


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    assert parquet_of(tmp_path, []).num_rows == 0


def test_a_file_with_the_name_of_a_compressed_one_is_compressed(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    for name in ("out.jsonl", "out.jsonl.gz", "out.jsonl.zst"):
        run(source, tmp_path / name)
    plain = (tmp_path / "out.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()) == plain
    unpack = zstandard.ZstdDecompressor().decompressobj()
    assert unpack.decompress((tmp_path / "out.jsonl.zst").read_bytes()) == plain
    assert not list(tmp_path.glob("*.part.jsonl"))


def test_a_file_that_cannot_be_made_leaves_the_old(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'{"a": 1}\n')
    with pytest.raises(GPT2CLIError, match="cannot write"):
        results.convert(lines, tmp_path / "none" / "out.parquet", "parquet")
