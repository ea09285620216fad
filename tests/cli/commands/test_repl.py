"""`gpt2 repl` as a shell sees it: lines in a pipe, keys and Ctrl-C on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from helpers import BARD_SIZE, Run, error_of

import gpt2cli
from gpt2cli.cli.commands.repl import COMMANDS, entries
from gpt2cli.config.spec import BUNDLED_DIR
from gpt2cli.errors import UsageError
from gpt2cli.generation.loop import generate
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.text.tokenizer import Tokenizer

REPL = ("repl", "-m", "bard", "--seed", "1", "-n", "9", "--device", "cpu")


Generated = Callable[..., str]


@pytest.fixture(scope="module")
def generated() -> Generated:
    """What bard makes of a whole prompt, read afresh."""
    model = gpt2cli.load("bard", device="cpu", precision="fp32")
    tokenizer, decoder = model.tokenizer, model.decoder()

    def run(pieces: list[str], seed: int, tokens: int = 9) -> str:
        ids = [i for piece in pieces for i in tokenizer.encode(piece)]
        config = GenerationConfig(model.sampling, max_tokens=tokens, seed=seed)
        return "".join(event.text for event in generate(decoder, tokenizer, ids, config))

    return run


# Lines in, completions out.


def test_each_line_goes_on_with_the_text(run_main: Run, generated: Generated) -> None:
    done = run_main(*REPL, stdin=b"ROMEO:\nJULIET:\n, and\r\n\n")
    assert done.stderr == b""
    pieces: list[str] = []
    expected = ""
    for i, line in enumerate(("ROMEO:", "\nJULIET:", "\n, and", "")):
        pieces.append(line)
        pieces.append(generated(pieces, seed=1 + i))
        expected += pieces[-1] + "\n"
    assert done.stdout.decode() == expected


def test_commands_act_and_speak_on_stderr_alone(
    run_main: Run, generated: Generated, tmp_path: Path
) -> None:
    file = tmp_path / "text so far"
    script = (
        f"/set max_tokens 3\nROMEO:\n so\n/undo\n/save {file}\n/tokens\n/set\n/help\n/quit\nx\n"
    )
    done = run_main(*REPL, stdin=script.encode())
    first = generated(["ROMEO:"], 1, tokens=3)
    second = generated(["ROMEO:", first, " so"], 2, tokens=3)
    assert done.stdout.decode() == f"{first}\n{second}\n"
    assert file.read_text() == "ROMEO:" + first
    errors = done.stderr.decode()
    tokenizer = Tokenizer.load(BUNDLED_DIR / "bard")
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("ROMEO:")]
    assert f"{len(pieces) + 3} of {BARD_SIZE.context_length} tokens" in errors
    assert " ".join(f'"{piece}"' for piece in pieces) in errors
    assert "max_tokens          3\n" in errors
    assert all(f"/{name}" in errors for name in COMMANDS)


def test_a_file_that_is_there_is_saved_over_only_when_asked(run_main: Run, tmp_path: Path) -> None:
    file = tmp_path / "keep.txt"
    file.write_text("precious")
    done = run_main(*REPL, stdin=f"ROMEO:\n/save {file}\n/reset\n".encode(), code=2)
    assert f"{file} exists; /save! {file} writes over it" in done.stderr.decode()
    assert file.read_text() == "precious"
    run_main(*REPL, stdin=f"/save! {file}\n".encode(), code=2)  # with nothing
    assert file.read_text() == "precious"
    run_main(*REPL, stdin=f"ROMEO:\n/save! {file}\n".encode())
    assert file.read_text().startswith("ROMEO:")


def test_retry_draws_anew_and_two_slashes_are_one(run_main: Run, generated: Generated) -> None:
    done = run_main(*REPL, stdin=b"//quit\n/retry\n/reset\nROMEO:\n")
    expected = [generated(["/quit"], 1), generated(["/quit"], 2)]
    expected += [generated(["ROMEO:"], 3)]
    assert done.stdout.decode() == "".join(text + "\n" for text in expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"/rtry", "unknown command '/rtry'; did you mean '/retry'?"),
        (b"/undo 3", "/undo takes nothing after it"),
        (b"/undo", "there is nothing to take back"),
        (b"/set temperature -1", "temperature must be 0 (greedy) or a positive number"),
        (b"/set stop", "/set stop needs a value"),
        (b"/save", "/save needs the name of a file"),
        (b"/save /", "cannot write /: it is a directory"),
        (b"/save /no/such/place", "cannot write /no/such/place: /no/such is no directory"),
        (b"/save a\0b", "a name cannot hold the character NUL"),
        (b"/save text", "there is no text to save yet"),
        (b"/save " + b"x" * 300, "File name too long"),
        (b"", "there is no text yet to continue"),
        (b"\xff", "line 1 of stdin is not valid UTF-8 text (at byte 0)"),
    ],
)
def test_the_first_error_ends_a_pipe(run_main: Run, line: bytes, message: str) -> None:
    done = run_main(*REPL, stdin=line + b"\nROMEO:\n", code=2)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_no_lines_are_no_error_and_a_closed_stdin_is(run_main: Run) -> None:
    done = run_main(*REPL)
    assert (done.stdout, done.stderr) == (b"", b"")
    command = f"{sys.executable} -m gpt2cli repl -m bard <&-"
    closed = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert closed.returncode == 2
    assert b"stdin is closed" in closed.stderr


def test_wrong_options_are_refused_before_a_line_is_read(run_main: Run) -> None:
    done = run_main("repl", "-m", "bard", "--top-p", "2", stdin=b"x\n", code=2)
    assert done.stdout == b""
    assert b"--top-p must be above 0" in done.stderr


@pytest.fixture
def talking() -> Iterator[subprocess.Popen[bytes]]:
    """A session whose completions would take minutes, in a conversation through pipes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "repl", "-m", "bard", "-n", "1000000", "--ignore-eos"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.communicate()


def test_completions_come_as_lines_do_and_a_closed_pipe_is_141(
    talking: subprocess.Popen[bytes],
) -> None:
    assert talking.stdin is not None
    assert talking.stdout is not None
    assert talking.stderr is not None
    talking.stdin.write(b"/set max_tokens 5\nROMEO:\n")
    talking.stdin.flush()
    assert talking.stdout.readline()  # while stdin is still open
    talking.stdin.write(b"/set max_tokens 1000000\n\n")
    talking.stdin.flush()
    talking.stdout.read(1)
    talking.stdout.close()
    assert talking.wait(30) == 141
    assert talking.stderr.read() == b""


def test_ctrl_c_in_a_pipe_is_130(talking: subprocess.Popen[bytes]) -> None:
    assert talking.stdin is not None
    assert talking.stdout is not None
    talking.stdin.write(b"ROMEO:\n")
    talking.stdin.flush()
    talking.stdout.read(10)
    talking.send_signal(signal.SIGINT)
    _, errors = talking.communicate(timeout=30)
    assert (talking.returncode, errors) == (130, b"")


def test_a_backslash_at_the_end_joins_two_lines() -> None:
    data = b"one\\\ntwo\\\r\nthree\nfour\n\nlast\\"
    assert list(entries(BytesIO(data))) == ["one\ntwo\nthree", "four", "", "last"]
    with pytest.raises(UsageError, match="line 2 of stdin"):
        list(entries(BytesIO(b"good\n\xc3\n")))


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from gpt2cli.cli import main; sys.argv = ['gpt2', 'repl', '--help']\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'prompt_toolkit'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stderr == b"set()\n"


# On a terminal.


class Terminal:
    """The command on a pseudo-terminal of its own, and what its screen has received."""

    ready = b"\x1b[?2004h"  # a prompt begins to wait, and asks for pastes to be marked

    def __init__(self, *arguments: str, state: Path) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "XDG_STATE_HOME": str(state), "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt2cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**env, "TERM": "xterm"},
        )
        os.close(slave)
        self.screen, self.seen = b"", 0

    def wait_for(self, text: bytes) -> None:
        """Read until `text` has appeared after what was waited for before."""
        deadline = time.monotonic() + 60
        while (at := self.screen.find(text, self.seen)) < 0:
            assert time.monotonic() < deadline, self.screen[self.seen :]
            if select.select([self.master], [], [], 0.1)[0]:
                self.screen += os.read(self.master, 65536)
        self.seen = at + len(text)

    def answer(self, keys: bytes, expected: bytes) -> None:
        """Type at the next prompt and wait for what must come of it."""
        self.wait_for(self.ready)
        os.write(self.master, keys)
        self.wait_for(expected)


def test_ctrl_c_stops_a_completion_and_ctrl_d_leaves(tmp_path: Path) -> None:
    arguments = ("-n", "1000000", "--ignore-eos", "--seed", "1")
    terminal = Terminal("repl", "-m", "bard", *arguments, state=tmp_path)
    try:
        terminal.answer(b"ROMEO:\r", b",")  # within an endless completion
        terminal.process.send_signal(signal.SIGINT)
        terminal.answer(b"\x03", b"Ctrl-D or /quit leaves")
        terminal.answer(b"/undo\r", b"there is no text")
        terminal.answer(b"/udno\r", b"did you mean '/undo'")
        terminal.answer(b"\x04", b"")
        assert terminal.process.wait(30) == 0
        assert b"Traceback" not in terminal.screen
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal within a completion that would take minutes."""
    arguments = ("-n", "1000000", "--ignore-eos", "--seed", "1")
    terminal = Terminal("repl", "-m", "bard", *arguments, state=tmp_path)
    terminal.answer(b"ROMEO:\r", b",")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.master)


def echoes(descriptor: int) -> bool:
    return bool(termios.tcgetattr(descriptor)[3] & termios.ECHO)


def test_what_is_typed_during_a_completion_is_seen_at_the_next_prompt(endless: Terminal) -> None:
    assert not echoes(endless.master)
    os.write(endless.master, b"typed too late\x7f\x7f\x7f\x7fsoon")
    endless.process.send_signal(signal.SIGINT)
    endless.wait_for(endless.ready)
    assert b"too" not in endless.screen[: endless.seen]
    endless.wait_for(b"typed too soon")


def test_what_is_sent_during_a_completion_is_done_after_it(endless: Terminal) -> None:
    os.write(endless.master, b"/udno\r")
    endless.process.send_signal(signal.SIGINT)
    endless.wait_for(b"did you mean '/undo'")


def test_ctrl_d_during_a_completion_leaves_after_it(endless: Terminal) -> None:
    os.write(endless.master, b"\x04")
    endless.process.send_signal(signal.SIGINT)
    assert endless.process.wait(30) == 0


def test_killed_it_leaves_the_terminal_as_it_was(endless: Terminal) -> None:
    endless.process.send_signal(signal.SIGTERM)
    assert endless.process.wait(30) == -signal.SIGTERM
    assert echoes(endless.master)


def test_options_of_sampling_are_settings_as_in_generate(run_main: Run) -> None:
    dry = ("--dry-multiplier", "0.8", "--dry-breaker", ";")
    options = ("--no-repeat-ngram", "2", "--xtc-probability", "0.5", "--min-tokens", "3")
    done = run_main("repl", "-m", "bard", *options, *dry, stdin=b"/set\n")
    assert done.stdout == b""
    shown = {
        line.split(maxsplit=1)[0]: line.split()[1] for line in done.stderr.decode().splitlines()
    }
    assert shown["no_repeat_ngram"] == "2"
    assert shown["xtc_probability"] == "0.5"
    assert shown["min_tokens"] == "3"
    assert shown["dry_breakers"] == '";"'
    assert shown["top_p"] == "0.95"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-base", "2"], "--dry-base needs --dry-multiplier"),
        (["--regex", "("], "--regex: "),
        (["--choice", "a", "--regex", "b"], "--regex and --choice cannot go together"),
        (["--bias", "London"], "a bias is written TOKEN=AMOUNT"),
    ],
)
def test_what_generate_refuses_is_refused(
    run_main: Run, arguments: list[str], message: str
) -> None:
    done = run_main("repl", "-m", "bard", *arguments, code=2)
    assert message in error_of(done)


def test_every_completion_keeps_to_a_constraint(run_main: Run) -> None:
    pytest.importorskip("llguidance")
    done = run_main("repl", "-m", "bard", "--regex", "[0-9]{3}", stdin=b"ROMEO:\nJULIET:\n")
    assert re.fullmatch(rb"([0-9]{3}\n){2}", done.stdout)


def test_a_bias_bans_a_token_in_every_completion(run_main: Run) -> None:
    arguments = ("repl", "-m", "bard", "-t", "0", "-n", "1")
    free = run_main(*arguments, stdin=b"ROMEO:\n")
    banned = run_main(*arguments, "--bias", "\n=-inf", stdin=b"ROMEO:\n")
    assert (free.stdout, banned.stdout[:1] != b"\n") == (b"\n\n", True)
