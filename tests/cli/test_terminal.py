"""What reaches a terminal, a pipe and stderr."""

import sys

import pytest
from conftest import Stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2cli.cli.terminal import Output, complain, is_terminal, notice, visible
from gpt2cli.errors import GPT2CLIError

# Unicode's Bidi_Control characters that embed, override or isolate.
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *BIDI} - {"\n", "\t"}
TEXTS = st.text(max_size=20) | st.text(
    st.sampled_from(sorted(CONTROLS)) | st.sampled_from("a\n\té😀\\"), max_size=20
)


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
