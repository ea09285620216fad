"""How text gets in, whatever the locale, and what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli import files
from gpt2cli.cli.io import inputs
from gpt2cli.cli.io.inputs import read_argument, read_stdin
from gpt2cli.errors import UsageError
from gpt2cli.files import decode_utf8, read_file


@settings(deadline=None, max_examples=100)
@given(
    text=st.text(), rest=st.sampled_from([b"\xff", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
)
def test_the_first_byte_that_is_no_utf8_is_named(text: str, rest: bytes) -> None:
    data = text.encode()
    assert decode_utf8(data, "x") == text
    with pytest.raises(UsageError) as error:
        decode_utf8(data + rest, "notes.txt")
    assert str(error.value) == f"notes.txt is not valid UTF-8 text (at byte {len(data)})"


@settings(deadline=None, max_examples=50)
@given(text=st.text())
@pytest.mark.parametrize("locale", ["utf-8", "ascii"])
def test_an_argument_is_utf8_whatever_the_locale_made_of_it(locale: str, text: str) -> None:
    """Python decodes arguments with surrogateescape; `os.fsencode` is its inverse."""
    argument = text.encode().decode(locale, "surrogateescape")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsencode", lambda a: a.encode(locale, "surrogateescape"))
        assert read_argument(argument) == text


def test_an_argument_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match=r"an argument is not valid UTF-8 text \(at byte 3\)"):
        read_argument(os.fsdecode(b"caf\xe9"))


def test_stdin_is_read_as_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "caf\u00e9\r\n😀\x00".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert read_stdin() == "café\r\n😀\x00"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(UsageError, match=r"stdin is not valid UTF-8 text \(at byte 2\)"):
        read_stdin()


def test_a_closed_stdin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="stdin is closed"):
        read_stdin()


def test_a_file_is_read_byte_for_byte_or_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("a\r\né\ufeff".encode())
    assert read_file(path) == "a\r\né\ufeff"
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"notes\.txt is not valid UTF-8 text \(at byte 0\)"):
        read_file(path)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot read") as error:
            read_file(missing)
        assert str(missing) in str(error.value)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("text", ["", "\n", "a\r\né\n\n", "one line", "é\nb\r\n", "a\n\n"])
def test_pieces_of_a_file_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, keep: bool
) -> None:
    monkeypatch.setattr(files, "PIECE", 1)
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    pieces = list(inputs.read_pieces(str(path), "text", keep))
    assert "".join(pieces) == (text if keep else inputs.without_newline(text))
    assert len(pieces) > text.count("\n")
    path.write_bytes(text.encode() + b"\xff")
    with pytest.raises(UsageError, match=rf"text is not .* \(at byte {len(text.encode())}\)"):
        list(inputs.read_pieces(str(path), "text", keep))


@settings(deadline=None, max_examples=50)
@given(data=st.binary() | st.text("ab\r\n").map(str.encode), most=st.integers(1, 5))
def test_lines_arrive_whole(data: bytes, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "ARRIVED", most)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        lines = [line for arrived in inputs.read_lines("-") for line in arrived]
    assert lines == io.BytesIO(data).readlines()


def test_what_cannot_be_read_is_refused_and_a_fifo_left_alone(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=r"cannot read|there is no file"):
            inputs.check_readable(str(missing))
    os.mkfifo(tmp_path / "fifo")
    inputs.check_readable(str(tmp_path / "fifo"))  # to open it would wait for a writer
    (tmp_path / "text").touch()
    inputs.check_readable(str(tmp_path / "text"))


def test_an_argument_is_a_text_where_it_can_be_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "king").touch()
    (tmp_path / "lost link").symlink_to("nowhere")
    for name in ("king", "lost link", "esay.txt", "my essay.md", "texts/king", "-"):
        assert not inputs.is_text(name)
    for text in ("queen", "Hello, world.", "and / or", "a\nb.c\nd", "", "x" * 5000, "a\x00b"):
        assert inputs.is_text(text)


def test_a_file_that_others_have_begun_to_read_is_left_to_them(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"first\nsecond\n")
    script = "from gpt2cli.cli.io.inputs import read_text; print([read_text(a, None, False)])"
    for prepare, argument, expected in (
        ("", "'own'", "['first\\nsecond\\nown']"),  # from the beginning: as a pipe
        ("os.read(0, 6); ", "'own'", "['own']"),
        ("os.read(0, 6); ", "'-'", "['second']"),
        ("os.read(0, 6); ", "None", "['second']"),
    ):
        with (tmp_path / "lines").open("rb") as stdin:
            done = subprocess.run(
                [sys.executable, "-c", f"import os; {prepare}a = {argument}; {script}"],
                stdin=stdin,
                capture_output=True,
                check=True,
            )
        assert done.stdout.decode().strip() == expected
