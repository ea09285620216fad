"""What reaches a terminal, a pipe and stderr, and how text gets in."""

import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2cli.cli import terminal
from gpt2cli.cli.terminal import (
    Output,
    complain,
    decode_utf8,
    is_terminal,
    notice,
    read_argument,
    read_file,
    read_stdin,
    visible,
)
from gpt2cli.errors import GPT2CLIError, UsageError

# Unicode's Bidi_Control characters that embed, override or isolate.
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *BIDI} - {"\n", "\t"}
TEXTS = st.text(max_size=20) | st.text(
    st.sampled_from(sorted(CONTROLS)) | st.sampled_from("a\n\té😀\\"), max_size=20
)


class Stream(io.TextIOWrapper):
    """A stdout or stderr in some encoding that may claim to be a terminal."""

    def __init__(self, terminal: bool = False, encoding: str = "ascii") -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, errors="strict", newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        """What was said when it was made."""
        return self._terminal

    def written(self) -> bytes:
        """Everything that has got through so far, without another flush."""
        return self.bytes.getvalue()


def output_to(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Output:
    monkeypatch.setattr(sys, "stdout", stream)
    return Output()


# --- visible ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "␛[2J"),
        ("\x07", "␇"),
        ("50 %\r100 %", "50 %␍100 %"),
        ("ab\x08c", "ab␈c"),
        ("\x00", "␀"),
        ("\x7f", "␡"),
        ("\x9b31m", "\\x9b31m"),
        ("\x80\x9f", "\\x80\\x9f"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("one\n\ttwo", "one\n\ttwo"),
        ("naïve 漢字 👩‍👩‍👧 العربية\u200f \u00a0", "naïve 漢字 👩‍👩‍👧 العربية\u200f \u00a0"),
    ],
)
def test_control_characters_become_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_every_control_character_becomes_something_else() -> None:
    for character in CONTROLS:
        assert not CONTROLS & set(visible(character)), ascii(character)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_only_control_characters_change_and_only_once(text: str) -> None:
    shown = visible(text)
    assert not CONTROLS & set(shown)
    assert visible(shown) == shown
    assert shown == "".join(visible(c) if c in CONTROLS else c for c in text)


# --- stdout -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(TEXTS))
@example(texts=["\x1b[1m", "é", "\r\n", "😀\x00"])
def test_a_pipe_gets_every_byte_as_utf8_whatever_the_locale(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stream = Stream(encoding="ascii")
        output = output_to(monkeypatch, stream)
        for count, text in enumerate(texts, 1):
            output.write(text)
            assert stream.written() == "".join(texts[:count]).encode()


def test_a_terminal_gets_control_characters_made_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True, encoding="latin-1")
    output = output_to(monkeypatch, stream)
    assert output.terminal
    output.write("a\x1b[2Jé\n\u202e\x9b")
    assert stream.written() == "a␛[2Jé\n\\u202e\\x9b".encode()


def test_text_comes_after_what_was_printed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    print("first", end=" ")
    Output().write("second")
    assert stream.written() == b"first second"


@pytest.mark.parametrize(
    ("texts", "result"),
    [
        ([], b""),
        ([""], b""),
        (["a"], b"a\n"),
        (["a\n"], b"a\n"),
        (["a\n", ""], b"a\n"),
        (["a\n", "b"], b"a\nb\n"),
        (["\n\n"], b"\n\n"),
        (["a\r"], b"a\r\n"),
    ],
)
def test_a_line_is_ended_once(
    monkeypatch: pytest.MonkeyPatch, texts: list[str], result: bytes
) -> None:
    stream = Stream()
    output = output_to(monkeypatch, stream)
    for text in texts:
        output.write(text)
    output.end_line()
    output.end_line()
    assert stream.written() == result


def test_a_closed_stdout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(GPT2CLIError, match="stdout is closed"):
        Output()


def test_a_closed_stream_is_no_terminal() -> None:
    assert not is_terminal(None)
    assert not is_terminal(Stream())
    assert is_terminal(Stream(terminal=True))


# --- stderr -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(message=TEXTS | st.text(st.sampled_from("a \n\r\t\x0b\x0c\x1c\x85\u2028\u2029"), max_size=9))
def test_a_complaint_is_one_line(message: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stream = Stream(encoding="utf-8")
        monkeypatch.setattr(sys, "stderr", stream)
        complain(message)
    line = stream.written().decode()
    assert line.startswith("gpt2: ")
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert not CONTROLS & set(line)


def test_a_complaint_says_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    complain("cannot read caf\u00e9\x1b[1m:\n  no such file \udcff")
    assert stream.written().decode() == "gpt2: cannot read café␛[1m: no such file ?\n"


def test_a_complaint_without_stderr_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    complain("nobody reads this")
    notice("nor this", asked=True)


@pytest.mark.parametrize(
    ("terminal", "asked", "result"),
    [
        (False, False, b""),
        (False, True, b"gpt2: well\n"),
        (True, False, b"gpt2: well\n"),
        (True, True, b"gpt2: well\n"),
    ],
)
def test_a_notice_is_for_people(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, asked: bool, result: bytes
) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    notice("well", asked=asked)
    assert stream.written() == result


def test_there_is_no_progress_bar_without_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    with terminal.download_progress() as progress:
        assert progress is None
    assert stream.written() == b""


def test_a_progress_bar_names_the_file_without_its_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream(terminal=True, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.download_progress() as progress:
        assert progress is not None
        progress("model\x07[red].bin", 1, 2)
        progress("model\x07[red].bin", 2, 2)
    stream.flush()
    shown = stream.written().decode()
    assert "model␇[red].bin" in shown
    assert "\x07" not in shown


@pytest.mark.parametrize("to_terminal", [False, True])
def test_lines_are_counted_where_a_person_sees_no_lines_yet(
    monkeypatch: pytest.MonkeyPatch, to_terminal: bool
) -> None:
    stream = Stream(terminal=True, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", Stream(terminal=to_terminal))
    monkeypatch.setenv("TERM", "xterm")
    with terminal.line_progress() as advance:
        advance(1234)
    stream.flush()
    assert (b"1,234 lines" in stream.written()) == (not to_terminal)


# --- text in ----------------------------------------------------------------------------


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
    with pytest.raises(UsageError, match=r"the prompt is not valid UTF-8 text \(at byte 3\)"):
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
    monkeypatch.setattr(terminal, "PIECE", 1)
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    pieces = list(terminal.read_pieces(str(path), "text", keep))
    assert "".join(pieces) == (text if keep else terminal.without_newline(text))
    assert len(pieces) > text.count("\n")
    path.write_bytes(text.encode() + b"\xff")
    with pytest.raises(UsageError, match=rf"text is not .* \(at byte {len(text.encode())}\)"):
        list(terminal.read_pieces(str(path), "text", keep))


def test_what_cannot_be_read_is_refused_and_a_fifo_left_alone(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            terminal.check_readable(str(missing))
    os.mkfifo(tmp_path / "fifo")
    terminal.check_readable(str(tmp_path / "fifo"))  # to open it would wait for a writer
    (tmp_path / "text").touch()
    terminal.check_readable(str(tmp_path / "text"))
