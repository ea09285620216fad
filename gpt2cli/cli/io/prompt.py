"""The prompt of `gpt2 repl` on a terminal: its keys, its history, the status below it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

if TYPE_CHECKING:
    from gpt2cli.cli.io.terminal import Palette


def make_prompt(
    words: Mapping[str, Sequence[str]],
    status: Callable[[], str],
    colours: Palette | None = None,
) -> PromptSession[str]:
    """A prompt whose Enter sends; `status` is shown below while it waits.

    `words` are what Tab completes, by the text before: "" or "/set". With `colours`, what is
    typed has its own colour.
    """
    return PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=open_history(),
        completer=_Words(words),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        bottom_toolbar=status,
        style=Style([("", "fg:ansicyan"), ("bottom-toolbar", "noreverse fg:ansibrightblack")]),
        color_depth=ColorDepth.DEPTH_4_BIT if colours else ColorDepth.DEPTH_1_BIT,
        enable_suspend=True,
    )


class _Words(Completer):
    """Completes words by the text before them, and the names of files after /save."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = words
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """The completions of the text before the cursor."""
        text = document.text_before_cursor
        command, space, name = text.partition(" ")
        if space and command in ("/save", "/save!"):
            return self._files.get_completions(Document(name), event)
        before, _, word = text.rpartition(" ")
        found = (known for known in self._words.get(before, ()) if known.startswith(word))
        return [Completion(known, -len(word)) for known in found]


@contextmanager
def unseen_keys() -> Iterator[None]:
    """Keep what is typed meanwhile for the next prompt, without echo.

    The terminal is restored afterwards, also on Ctrl-Z and when killed, except by SIGKILL.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return

    hidden = termios.tcgetattr(descriptor)
    hidden[0] &= ~termios.ICRNL  # Enter reaches the prompt as it is
    # Not line by line, which would lose Ctrl-D; and Ctrl-C must not flush the input.
    hidden[3] = hidden[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH

    def show(wanted: list[Any]) -> None:
        with suppress(termios.error):  # a terminal that was closed
            termios.tcsetattr(descriptor, termios.TCSANOW, wanted)

    def leave(number: int, frame: object) -> None:
        show(before)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, leave)  # reached after Ctrl-Z, in the foreground again
        show(hidden)

    handled = [signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP]
    old = {number: signal.signal(number, leave) for number in handled}
    show(hidden)
    try:
        yield
    finally:
        show(before)
        for number, handler in old.items():
            signal.signal(number, handler)


def _keys() -> KeyBindings:
    """Enter sends, Esc Enter or a backslash before Enter begins a line, Ctrl-C clears."""
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
        # A full disk, or half a character pasted, must not lose the line.
        with suppress(OSError, UnicodeError):
            super().store_string(string)


def open_history() -> History:
    """The lines of earlier runs, from the user's private file; else those of this run."""
    try:
        path = state_directory() / "history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except (OSError, RuntimeError):  # the latter where there is no home
        return InMemoryHistory()
    return _History(str(path))


def state_directory() -> Path:
    """The directory for state between runs, by this system's convention."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():  # the XDG specification has relative ones ignored
        return state / "gpt2cli"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "gpt2cli"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/gpt2cli"
    return Path.home() / ".local/state/gpt2cli"
