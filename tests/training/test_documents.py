"""Files, directories and rows become documents, in order, or an error that names the place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli import files
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.training.documents import Documents, Fields

END = "<|endoftext|>"
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(*names: Path, renames: list[str] | None = None) -> list[tuple[str | None, str]]:
    """Prompts and texts."""
    documents = Documents(names, Fields.parse(renames or []))
    found = [(document.prompt, "".join(document.text)) for document in documents]
    again = [(document.prompt, "".join(document.text)) for document in documents]
    assert found == again
    return found


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\r\ntwo\n", ["one\r\ntwo\n"]),
        ("\ufeffé", ["é"]),
        (f"a\n{END}\nb{END}c\n\n{END}\n\n", ["a\n", "b", "c\n\n"]),
        (f"{END}a{END}{END}\r\nb", ["a", "b"]),
        (f" {END}\n\n \n{END}", []),
        ("", []),
    ],
)
def test_a_text_file_is_one_document_or_those_between_separators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, text: str, documents: list[str]
) -> None:
    monkeypatch.setattr(files, "PIECE", 1)
    path = tmp_path / f"book{ending}"
    path.write_bytes(PACK[ending](text.encode()))
    assert read(path) == [(None, document) for document in documents]


@given(st.lists(st.text(st.sampled_from("ab \n<|"), min_size=1), max_size=5))
def test_texts_joined_by_separators_come_back(texts: list[str]) -> None:
    found = Documents([])._separated(f"{END}\n".join(texts).splitlines(keepends=True), "a file")
    assert ["".join(document.text) for document in found] == [t for t in texts if t.strip()]


def test_a_directory_gives_its_texts_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a.txt", ".git/c.txt", "d.py", "c.txt.gz", "empty.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        data = name.encode() if name != "empty.txt" else b" \n"
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    documents = Documents([tmp_path])
    expected = ["a/z.md", "a.txt", "b.txt", "c.txt.gz"]
    assert ["".join(document.text) for document in documents] == expected
    assert documents.empty == 1
    assert read(tmp_path / "d.py", tmp_path)[0] == (None, "d.py")
    (tmp_path / ".git" / "c.txt").unlink()
    with pytest.raises(UsageError, match=r"there is no .txt or .md file in .*\.git"):
        Documents([tmp_path / ".git"])


@pytest.mark.parametrize("ending", PACK)
def test_rows_are_texts_or_prompts_and_completions(tmp_path: Path, ending: str) -> None:
    path = lines(
        tmp_path / "rows.jsonl",
        {"text": f"one{END}", "id": 5},
        {"prompt": "2 + 2 =", "completion": f" 4{END}\n"},
        {"text": None},
        {"prompt": None, "completion": "begins"},
        {"prompt": "says nothing", "completion": " "},
        {"text": f"two{END}three"},
    )
    packed = tmp_path / f"packed.jsonl{ending}"
    packed.write_bytes(PACK[ending](path.read_bytes()))
    assert read(packed) == [
        (None, "one"),
        ("2 + 2 =", " 4"),
        ("", "begins"),
        (None, "two"),
        (None, "three"),
    ]
    documents = Documents([packed])
    assert len(list(documents)) == 5
    assert documents.empty == 2


def test_tables_are_read_by_their_columns_and_a_single_one_is_the_text(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text('prompt,completion,n\n"a, ""b""\nc",d,1\n,e,2\n')
    assert read(table) == [('a, "b"\nc', "d"), ("", "e")]
    single = tmp_path / "tweets.csv"
    single.write_text('tweets\n"one\ntwo"\nthree\n')
    assert read(single) == [(None, "one\ntwo"), (None, "three")]
    tabs = tmp_path / "tabs.tsv"
    tabs.write_text("id\ttext\n1\ta, b\n")
    assert read(tabs) == [(None, "a, b")]
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["p", None], "completion": ["c", "d"]}), parquet)
    assert read(parquet, tabs) == [("p", "c"), ("", "d"), (None, "a, b")]


def test_fields_are_renamed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"body": "b", "text": "t", "question": "q", "answer": "a"})
    assert read(path) == [(None, "t")]
    assert read(path, renames=["body"]) == [(None, "b")]
    assert read(path, renames=["text=body"]) == [(None, "b")]
    assert read(path, renames=["prompt=question", "completion=answer"]) == [("q", "a")]
    path = lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c", "text": "t", "x": "y"})
    with pytest.raises(UsageError, match="also a 'prompt' and a 'completion'; tell by field"):
        read(path)
    assert read(path, renames=["text"]) == [(None, "t")]
    assert read(path, renames=["prompt=x"]) == [("y", "c")]
    for wrong in (["texts=a"], ["text="], ["a", "prompt=b"]):
        with pytest.raises(UsageError, match="field must"):
            Fields.parse(wrong)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": 5}', "'text' must be text, not 5"),
        ('{"text": "a\\ud800"}', r"'text' is not valid UTF-8 text \(at byte 1\)"),
        ('{"tekst": "a"}', "no 'text', nor 'prompt' and 'completion'; did you mean 'tekst'"),
        ('{"prompt": "a"}', "no 'text', nor .*; it has prompt; field renames them"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "GPT-2 has no chat template"),
        ("[1]", "it is no JSON object"),
        ('{"text": "a"', "it is not JSON"),
        ("\xe9", r"it is not valid UTF-8 text \(at byte 0\)"),
    ],
)
def test_a_bad_row_is_an_error_that_names_it(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + row.encode("latin-1") + b"\n")
    found = iter(Documents([path]))
    assert "".join(next(found).text) == "good"
    with pytest.raises(UsageError, match=rf"^line 3 of {path}: .*{message}"):
        next(found)


def test_bad_cells_and_bytes_of_tables_and_texts_are_named(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_bytes(b"id,text\n1,a\n2\n")
    with pytest.raises(UsageError, match=r"row 2 of .*a.csv: it has 1 cells, .* 2 columns"):
        read(table)
    table.write_bytes(b"id,text\n1,ab\xff\n")
    with pytest.raises(UsageError, match=r"row 1 of .*'text' is not valid UTF-8 .*at byte 2\)"):
        read(table)
    table.write_text("messages\nhi\n")
    with pytest.raises(UsageError, match=r"row 1 of .*no chat template"):
        read(table)
    text = tmp_path / "a.txt"
    text.write_bytes(b"good\n" * 300_000 + b"a\xff")
    with pytest.raises(UsageError, match=r"a.txt is not valid UTF-8 text \(at byte 1500001\)"):
        read(text)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(b"text" * 1000)[:-9])
    with pytest.raises(GPT2CLIError, match="is damaged"):
        read(packed)
    with pytest.raises(UsageError, match="there is no file"):
        Documents([tmp_path / "none.txt"])


def test_a_large_text_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_bytes(b"Some words that are a line.\n" * 1_000_000)
    tracemalloc.start()
    try:
        size = sum(len(piece) for document in Documents([path]) for piece in document.text)
        assert size == path.stat().st_size
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()


def test_files_tell_when_they_change(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a"})
    before = Documents([path]).identity()
    assert Documents([path]).identity() == before
    lines(path, {"text": "b"}, {})
    assert Documents([path]).identity() != before
