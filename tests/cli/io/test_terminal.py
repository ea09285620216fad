"""What reaches a terminal, a pipe and stderr."""

import re
import sys
from collections.abc import Callable, Iterator

import pytest
from helpers import Run, Stream
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.table import Table

from gpt2cli.cli.io.terminal import (
    Output,
    complain,
    is_terminal,
    notice,
    palette,
    use_colour,
    visible,
    visible_token,
)
from gpt2cli.cli.render.tables import new_table, print_rich
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


# --- tables and colours -----------------------------------------------------------------


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., bytes]]:
    """Runs something with a stdout of some kind; what was written."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(
        do: Callable[[], object],
        *,
        terminal: bool = True,
        when: str = "auto",
        **env: str,
    ) -> bytes:
        stream = Stream(terminal, encoding="utf-8")
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(sys, "stdout", stream)
            for name, value in env.items():
                inner.setenv(name, value)
            use_colour(when)
            do()
        return stream.written()

    yield run
    use_colour("auto")


def table() -> Table:
    made = new_table("name", "", "count", "with\nshare", text=2)
    made.add_row("the first of them", "", "1,234,567", "12.5 %")
    made.add_row("x", "", "1", "")
    return made


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ("46", ["                                  with", "name               "]),
        (
            "25",
            [
                "the first of them",
                "  count       1,234,567",
                "  with share  12.5 %",
                "x",
                "  count       1",
            ],
        ),
    ],
)
def test_a_table_that_does_not_fit_becomes_paragraphs(
    columns: str, shown: list[str], colour: Callable[..., bytes]
) -> None:
    lines = (
        colour(lambda: print_rich(table()), terminal=False, COLUMNS=columns).decode().splitlines()
    )
    assert max(map(len, lines)) <= int(columns)
    assert [line[: len(s)] for line, s in zip(lines, shown, strict=False)] == shown
    assert any("1,234,567" in line for line in lines)


@given(
    cells=st.lists(
        st.tuples(st.text("ab ", max_size=9), st.integers(0, 10**9)), min_size=1, max_size=4
    ),
    columns=st.integers(20, 60),
)
def test_no_number_is_ever_broken(cells: list[tuple[str, int]], columns: int) -> None:
    made = new_table("a name", "a number", "again")
    for text, number in cells:
        made.add_row(text, f"{number:,}", f"{number:,} MB")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stream = Stream(encoding="utf-8")
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", str(columns))
        print_rich(made)
    written = stream.written().decode()
    for _, number in cells:
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", written)


def test_in_paragraphs_a_number_keeps_its_heading_and_a_text_its_place(
    colour: Callable[..., bytes],
) -> None:
    made = new_table("context", "speed", text=0)
    made.add_row("1,024", "some words that go on below")
    shown = colour(lambda: print_rich(made), terminal=False, COLUMNS="24").decode()
    assert shown == "context 1,024\n  speed\n    some words that go\n    on below\n"


def test_no_line_of_a_table_ends_in_blanks(colour: Callable[..., bytes]) -> None:
    for terminal in (True, False):
        written = colour(lambda: print_rich(table()), terminal=terminal, NO_COLOR="1", TERM="xterm")
        assert not re.search(rb"[ \t]$", written, re.MULTILINE)


@pytest.mark.parametrize(
    ("terminal", "when", "env", "expected"),
    [
        (True, "auto", {"TERM": "xterm-256color"}, "256"),
        (True, "auto", {"TERM": "xterm"}, "standard"),
        (True, "auto", {"TERM": "xterm", "COLORTERM": "truecolor"}, "truecolor"),
        (True, "auto", {"TERM": "dumb"}, None),
        (True, "auto", {"TERM": ""}, None),
        (True, "auto", {"TERM": "xterm-256color", "NO_COLOR": "1"}, None),
        (True, "auto", {"TERM": "xterm-256color", "NO_COLOR": ""}, "256"),
        (True, "never", {"TERM": "xterm-256color", "FORCE_COLOR": "1"}, None),
        (False, "auto", {"TERM": "xterm-256color"}, None),
        (False, "auto", {"TERM": "xterm-256color", "FORCE_COLOR": "0"}, None),
        (False, "auto", {"TERM": "xterm-256color", "FORCE_COLOR": "1"}, "256"),
        (False, "auto", {"TERM": "xterm", "CLICOLOR_FORCE": "1"}, "standard"),
        (False, "auto", {"TERM": "xterm", "CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, None),
        (False, "always", {"TERM": "dumb", "NO_COLOR": "1"}, "256"),
    ],
)
def test_colours_are_for_terminals_that_have_them_unless_asked_for(
    terminal: bool,
    when: str,
    env: dict[str, str],
    expected: str | None,
    colour: Callable[..., bytes],
) -> None:
    found: list[str | None] = []
    colour(lambda: found.append(palette()), terminal=terminal, when=when, **env)
    assert found == [expected]
    written = colour(lambda: print_rich(table()), terminal=terminal, when=when, **env)
    assert (b"\x1b[" in written) == (expected is not None)


@pytest.mark.parametrize("command", ["models", "info"])
def test_an_unknown_word_for_colours_is_refused(run_main: Run, command: str) -> None:
    done = run_main(command, "--color", "sometimes", code=2)
    assert done.stdout == b""
    assert b"--color must be auto, always or never, not 'sometimes'" in done.stderr


@pytest.mark.parametrize("when", ["always", "never", "auto"])
def test_colour_is_an_option_of_the_tables(run_main: Run, when: str) -> None:
    done = run_main("info", "--all", "--color", when)
    assert (b"\x1b[" in done.stdout) == (when == "always")


def test_what_a_person_gave_has_its_own_colour(colour: Callable[..., bytes]) -> None:
    def write() -> None:
        Output().write_given("a\x1b[2J")

    assert colour(write, TERM="xterm") == "\x1b[36ma␛[2J\x1b[0m".encode()
    assert colour(write, TERM="dumb") == "a␛[2J".encode()
    assert colour(write, terminal=False, when="always", TERM="xterm") == b"a\x1b[2J"


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


@given(st.text())
@example("\u2028\u200b\u00ad\u202e\x85\x00\x1b\xa0\ue000\U000e0001")
def test_a_piece_is_one_line_of_what_can_be_seen(text: str) -> None:
    shown = visible_token(text.encode("utf-8", "surrogatepass"))
    assert shown.isprintable()
    assert " " not in shown
    assert bool(shown) == bool(text)
