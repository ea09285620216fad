"""`gpt2 generate` where pipes close, disks are full, people look on and press Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import REPOSITORY, Run, needs_full_device, on_terminal, says

from gpt2cli.text.tokenizer import Tokenizer

# Pipes that close, disks that are full, Ctrl-C.


@pytest.fixture
def endless(tiny_directory: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A generation that would take a minute."""
    command = [sys.executable, "-m", "gpt2cli", "generate", "x", "-m", str(tiny_directory)]
    process = subprocess.Popen(
        [*command, "-n", "1000000", "--ignore-eos"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.communicate()


def test_a_closed_pipe_is_exit_code_141_in_silence(endless: subprocess.Popen[bytes]) -> None:
    assert endless.stdout is not None
    assert endless.stderr is not None
    assert len(endless.stdout.read(10)) == 10
    endless.stdout.close()
    assert endless.wait(30) == 141
    assert endless.stderr.read() == b""


def test_ctrl_c_keeps_what_was_generated(endless: subprocess.Popen[bytes]) -> None:
    assert endless.stdout is not None
    start = endless.stdout.read(10)
    endless.send_signal(signal.SIGINT)
    rest, errors = endless.communicate(timeout=30)
    assert endless.returncode == 130
    assert len(start + rest) >= 10
    assert errors == b""


@needs_full_device
def test_a_full_disk_is_one_line(tiny_directory: Path) -> None:
    command = [sys.executable, "-m", "gpt2cli", "generate", "x", "-m", str(tiny_directory)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"gpt2: cannot write the output: No space left on device\n"


def test_a_closed_stdout_is_one_line(tiny_directory: Path) -> None:
    command = f"{sys.executable} -m gpt2cli generate x -m {tiny_directory} >&- </dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"stdout is closed" in done.stderr
    assert done.stderr.count(b"\n") == 1


# On a terminal.


def test_a_terminal_shows_the_prompt_too_and_the_seed(letters: Path) -> None:
    code, screen = on_terminal(
        "generate", "a", "-m", str(letters), "-n", "5", "-k", "1", "--color", "never"
    )
    assert code == 0
    assert screen.startswith("abcdef\n")
    assert "--seed " in screen


def test_a_terminal_never_gets_raw_control_characters(
    tiny_directory: Path, tmp_path: Path, run_main: Run
) -> None:
    escape, *rest = Tokenizer.load(tiny_directory).encode("\x1b]0;owned\x07")
    model = says(tmp_path / "model", [escape, *rest], tiny_directory)
    code, screen = on_terminal(
        "generate", "a", "-m", str(model), "-n", "10", "-t", "0", "--color", "never"
    )
    assert code == 0
    assert "\x1b" not in screen
    assert "\x07" not in screen
    assert "␛" in screen
    piped = run_main("generate", "a", "-m", str(model), "-n", "10", "-t", "0")
    assert b"\x1b" in piped.stdout


def test_no_prompt_on_a_terminal_begins_from_nothing(letters: Path) -> None:
    code, screen = on_terminal("generate", "-m", str(letters), "-n", "3", "-t", "0")
    assert (code, screen) == (0, "bcd\n")


def test_ctrl_c_on_a_terminal_ends_the_line_and_exits_130(tiny_directory: Path) -> None:
    arguments = ("generate", "xyzzy", "-m", str(tiny_directory), "-n", "1000000", "--ignore-eos")
    code, screen = on_terminal(*arguments, interrupt_after=b"xyzzy")
    assert code == 130
    assert "Traceback" not in screen
    assert screen.endswith("\n")


def test_beams_search_behind_a_bar_that_goes(letters: Path) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-n", "5", "--beams", "2")
    code, screen = on_terminal(*arguments, env={"TERM": "xterm"})
    assert code == 0
    assert "tokens" in screen
    cleared = "\x1b[2K"  # what the bar leaves behind
    assert screen.rpartition(cleared)[2].endswith("abcdef\n")


# A shell's loop, and a text that is continued where it is.


@pytest.mark.parametrize(
    ("command", "lines"),  # of each prompt, with the loop's own: --ids ends one itself
    [("generate -n 1 -t 0 --no-echo", 1), ("tokenize --ids", 2)],
)
def test_a_loop_over_the_lines_of_a_file_keeps_its_lines(
    letters: Path, tmp_path: Path, command: str, lines: int
) -> None:
    (tmp_path / "prompts").write_text("".join(f"prompt {i}\n" for i in range(4)))
    loop = (
        f'while IFS= read -r p; do {sys.executable} -m gpt2cli {command} -m "$0" -- "$p" '
        f"|| exit; echo; done < prompts"
    )
    done = subprocess.run(
        ["sh", "-c", loop, str(letters)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(b"\n") == 4 * lines


def test_a_file_is_continued_in_place_and_ends_as_the_text_does(
    run_main: Run, letters: Path, tmp_path: Path
) -> None:
    story = tmp_path / "story.txt"
    story.write_bytes(b"a\n")
    arguments = ("generate", "-m", str(letters), "-t", "0", "-n", "3", "--file", str(story))
    seen = Tokenizer.load(letters).encode("a\n")
    first = run_main(*arguments, "--append").stdout
    assert story.read_bytes() == b"a\n" + first
    assert first == bytes(range(ord("a") + len(seen), ord("a") + len(seen) + 3))
    second = run_main(*arguments, "--append").stdout
    assert story.read_bytes() == b"a\n" + first + second
    story.write_bytes(b"")
    run_main(*arguments, "--append")
    assert story.read_bytes() == b"bcd"
    for wrong in (["--json"], ["-s", "2"], ["--explain-sampling"], ["a prompt"]):
        refused = run_main(*arguments, "--append", *wrong, code=2)
        assert b"--append" in refused.stderr
    assert story.read_bytes() == b"bcd"
    device = run_main("generate", "-m", str(letters), "--append", "--file", "/dev/null", code=2)
    assert b"it is no regular file" in device.stderr


def test_what_was_written_before_ctrl_c_is_in_the_file(
    tiny_directory: Path, tmp_path: Path
) -> None:
    story = tmp_path / "story.txt"
    story.write_text("Once")
    command = [sys.executable, "-m", "gpt2cli", "generate", "-m", str(tiny_directory), "--append"]
    process = subprocess.Popen(
        [*command, "-f", str(story), "-n", "1000000", "--ignore-eos"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    shown = process.stdout.read(100)
    process.send_signal(signal.SIGINT)
    shown += process.stdout.read()
    assert process.wait(30) == 130
    assert story.read_bytes() == b"Once" + shown
