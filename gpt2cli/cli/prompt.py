"""The prompt of `gpt2 repl` on a terminal: its keys, its history, the status below it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style


def make_prompt(
    commands: Sequence[str], status: Callable[[], str], *, colour: bool = False
) -> PromptSession[str]:
    """A prompt whose Enter sends; `status` is shown below while it waits.

    `commands` are what Tab completes. With `colour`, what is typed differs from what is written.
    """
    return PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=open_history(),
        completer=_Commands(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        bottom_toolbar=status,
        style=Style(
            [
                ("", "fg:ansicyan" if colour else ""),
                ("bottom-toolbar", "noreverse fg:ansibrightblack"),
            ]
        ),
        enable_suspend=True,
    )


class _Commands(Completer):
    """Commands with what they can be given, and the names of files after /save."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = WordCompleter(list(commands), sentence=True)
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """What may be meant, of what stands before the cursor."""
        command, space, name = document.text_before_cursor.partition(" ")
        if space and command in ("/save", "/save!"):
            return self._files.get_completions(Document(name), event)
        return self._commands.get_completions(document, event)


@contextmanager
def unseen_keys() -> Iterator[None]:
    """Have the terminal not show what is typed meanwhile, and keep it, even after Ctrl-C."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield
        return
    hidden = termios.tcgetattr(descriptor)
    hidden[3] = hidden[3] & ~termios.ECHO | termios.NOFLSH
    try:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, hidden)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _keys() -> KeyBindings:
    """Enter sends, Esc Enter or a backslash before Enter begin a line, Ctrl-C empties."""
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=typing)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def has_text() -> bool:
        from prompt_toolkit.application import get_app

        return bool(get_app().current_buffer.text)

    # At an empty prompt Ctrl-C is left to prompt_toolkit, which raises KeyboardInterrupt.
    @keys.add("c-c", filter=typing & Condition(has_text))
    def _clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        # A full disk, or half a character pasted, costs the history but not the line.
        with suppress(OSError, UnicodeError):
            super().store_string(string)


def open_history() -> History:
    """The lines of earlier runs, in a file of the user's own; else those of this run."""
    try:
        path = state_directory() / "history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except (OSError, RuntimeError):  # the latter where there is no home
        return InMemoryHistory()
    return _History(str(path))


def state_directory() -> Path:
    """Where what a program remembers between runs belongs on this system."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():  # the XDG specification has relative ones ignored
        return state / "gpt2cli"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "gpt2cli"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/gpt2cli"
    return Path.home() / ".local/state/gpt2cli"
