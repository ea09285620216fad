"""The prompt's keys, its history, and a terminal that shows nothing while a model writes."""

from __future__ import annotations

import os
import pty
import signal
import stat
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from prompt_toolkit.application import Application, create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from gpt2cli.cli.io.prompt import make_prompt, open_history, unseen_keys


def typed(keys: str) -> str:
    """What the prompt returns for these keys."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        words = {"": ["/retry", "/reset", "/undo", "/save", "/set"]}
        words |= {"/set": ["temperature", "ignore_eos"], "/set ignore_eos": ["on", "off"]}
        return make_prompt(words, lambda: "status").prompt()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "gpt2cli"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("\x1b[200~one\ntwo\n\x1b[201~\r", "one\ntwo\n"),  # pasted
        ("wrong\x03right\r", "right"),
        ("/un\t\r", "/undo"),
        ("/set temp\t\r", "/set temperature"),
        ("/set ignore_eos o\tn\r", "/set ignore_eos on"),
        ("\r", ""),
    ],
)
def test_keys(state: Path, keys: str, text: str) -> None:
    assert typed(keys) == text


def test_ctrl_z_suspends(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def suspend(self: Application[str], suspend_group: bool = True) -> None:
        asked.append(suspend_group)

    monkeypatch.setattr(Application, "suspend_to_background", suspend)
    assert typed("a\x1ab\r") == "ab"
    assert len(asked) == 1


def test_tab_completes_the_names_of_files(state: Path, tmp_path: Path) -> None:
    (tmp_path / "scene one.txt").touch()
    assert typed(f"/save {tmp_path}/sc\t\r") == f"/save {tmp_path}/scene one.txt"
    assert typed(f"/save! {tmp_path}/sc\t\r") == f"/save! {tmp_path}/scene one.txt"


def test_ctrl_c_and_ctrl_d_on_an_empty_line(state: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed("\x03")
    with pytest.raises(EOFError):
        typed("\x04")


def test_lines_of_earlier_runs_come_back_and_are_nobody_elses(state: Path) -> None:
    typed("first\r")
    typed("one\x1b\rtwo\r")
    assert list(open_history().load_history_strings()) == ["one\ntwo", "first"]
    assert stat.S_IMODE((state / "history").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_without_a_place_for_the_history_the_prompt_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert isinstance(open_history(), InMemoryHistory)
    assert typed("hello\r") == "hello"


def echoes(descriptor: int) -> bool:
    return bool(termios.tcgetattr(descriptor)[3] & termios.ECHO)


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_it_was_while_a_signal_is_at_work(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    handler = signal.getsignal(number)
    seen: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "kill", lambda pid, n: seen.append((n, echoes(master))))
    with open(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with suppress(KeyboardInterrupt), unseen_keys():
            assert not echoes(master)
            signal.raise_signal(number)
            assert not echoes(master)  # it has gone on
            raise KeyboardInterrupt
        assert seen == [(number, True)]
        assert echoes(master)
        assert signal.getsignal(number) == handler
    os.close(master)


def test_without_a_terminal_nothing_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        before = signal.getsignal(signal.SIGTSTP)
        with unseen_keys():
            assert signal.getsignal(signal.SIGTSTP) == before
