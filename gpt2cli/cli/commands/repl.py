"""`gpt2 repl`: write a text together with the model, line by line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gpt2cli.cli import choosing, opening, options
from gpt2cli.cli.grouped import grouped
from gpt2cli.cli.io.inputs import without_newline
from gpt2cli.cli.io.terminal import Output, complain, is_terminal, notice, palette, visible
from gpt2cli.errors import GPT2CLIError, UsageError, did_you_mean
from gpt2cli.files import check_writable, decode_utf8, write_file

if TYPE_CHECKING:
    from gpt2cli.generation.record import Recorder
    from gpt2cli.generation.request import Event
    from gpt2cli.generation.session import Session


@grouped
def repl(
    *,
    limits: options.Limits,
    sampling: choosing.Sampling,
    constraint: choosing.Constraint,
    where: options.WhereDecoding,
    messages: options.Messages,
) -> None:
    """Write a text together with GPT-2, line by line.

    Each line continues the text, and then the model does. A line begins a new line of
    the text, unless it begins with a space; an empty one lets the model continue. /help lists
    the commands and the keys. Without a terminal each line of stdin is one entry, each
    completion goes to stdout with a newline after it, what commands say goes to stderr, and
    the first error ends the run. The first completion draws with the seed, the second with
    the seed plus 1, and so on.

    \b
    Examples:
      gpt2 repl --model bard
      printf 'ROMEO:\\nJULIET:\\n' | gpt2 repl -m bard --seed 1
    """
    model = opening.load(where)
    config = model.configure(
        **limits.given(), **sampling.given(model.sampling), constraint=constraint.resolve()
    )
    biases = sampling.biases()
    if where.compile_:
        model.check_compile()
    output = Output()
    opening.fetch(model, vocabulary_only=bool(biases))
    config = replace(config, bias=choosing.resolve_biases(biases, model))
    decoder = opening.open_decoder(
        model,
        compiled=where.compile_,
        verbose=messages.verbose,
    )
    from gpt2cli.generation.session import Session

    session = Session(decoder, model.tokenizer, config)
    loop = Repl(session, output, model.name, messages.verbose)
    facts = f"{model.describe()}, seed {config.seed}"
    if loop.interactive:
        loop.say(f"{facts}. /help lists the commands, Ctrl-D leaves.")
        loop.run()
    else:
        notice(facts, asked=messages.verbose)
        loop.run_lines()


class Repl:
    """Lines in, completions out: a line that begins with a slash is a command, others are text."""

    def __init__(self, session: Session, output: Output, model: str, verbose: bool) -> None:
        self.session = session
        self.interactive = output.terminal and is_terminal(sys.stdin)
        self._output = output
        self._model = model
        self._verbose = verbose
        self._speed: float | None = None

    def run(self) -> None:
        """Ask and answer on a terminal until Ctrl-D."""
        from gpt2cli.cli.io.prompt import make_prompt, unseen_keys
        from gpt2cli.generation import settings

        values = settings.fixed_values()
        words = {"": [f"/{name}" for name in COMMANDS], "/set": list(values)}
        words |= {f"/set {name}": list(fixed) for name, fixed in values.items()}
        prompt = make_prompt(words, self.status, palette())
        while True:
            try:
                line = prompt.prompt()
            except KeyboardInterrupt:
                self.say("Ctrl-D or /quit leaves.")
                continue
            except EOFError:
                return
            try:
                with unseen_keys():
                    self.enter(line)
            except KeyboardInterrupt:
                self._output.end_line()
            except EOFError:
                return
            except GPT2CLIError as error:
                complain(str(error))

    def run_lines(self) -> None:
        """Answer every line of stdin; the first error ends it."""
        if sys.stdin is None:
            raise UsageError("stdin is closed; there is nothing to read")
        for line in entries(sys.stdin.buffer):
            try:
                self.enter(line)
            except EOFError:
                return

    def enter(self, line: str) -> None:
        """Do what one line asks for. Raises `EOFError` to leave."""
        from gpt2cli.generation.session import follow

        if line.startswith("/") and not line.startswith("//"):
            self._command(line)
        else:
            text = line[1:] if line.startswith("//") else line
            self._show(self.session.complete(follow(self.session.text, text)))

    def status(self) -> str:
        """One line about model, context and speed."""
        used, room = len(self.session.window), self.session.context_length
        parts = [visible(self._model), f"{used:,} of {room:,} tokens"]
        return "  ".join([*parts, f"{self._speed:,.0f} tokens/s"] if self._speed else parts)

    def say(self, text: str) -> None:
        """Print a message: to the terminal, or to stderr where completions go to a pipe."""
        if self.interactive:
            self._output.write(text + "\n")
        elif sys.stderr is not None:
            line = visible(text) + "\n"
            sys.stderr.write(line.encode("utf-8", "replace").decode("utf-8"))
            sys.stderr.flush()

    def _command(self, line: str) -> None:
        name, _, argument = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            hint = did_you_mean("/" + name, (f"/{known}" for known in COMMANDS))
            raise UsageError(
                f"unknown command {'/' + name!r}{hint} (/help lists them; // begins a text with /)"
            )
        action, parameter, _ = COMMANDS[name]
        if argument and not parameter:
            raise UsageError(f"/{name} takes nothing after it")
        action(self, argument.strip())

    def _show(self, events: Generator[Event]) -> None:
        """Stream a completion; what was shown when it is interrupted stays in the text."""
        from gpt2cli.generation.record import Recorder

        recorder, before = Recorder(1), self.session.dropped
        seed = self.session.config.seed
        with closing(events):
            for event in recorder.watch(events):
                self._output.write(event.text)
        if self.interactive:
            self._output.end_line()
        else:
            self._output.write("\n")
        self._speed = recorder.tokens_per_second or self._speed
        if recorder.samples[0].finish_reason == "eos":
            notice("the model ended the text here")
        if self.session.dropped > before:
            notice(f"the context is full: its oldest {self.session.dropped:,} tokens are forgotten")
        if self._verbose:
            complain(_summary(recorder, seed))

    def _retry(self, _: str) -> None:
        self._show(self.session.retry())

    def _undo(self, _: str) -> None:
        count = self.session.undo()
        text = self.session.text
        ending = text if len(text) <= 60 else "…" + text[-60:]
        rest = f"the text ends with {_quoted(ending)}" if text else "there is no text"
        self.say(f"{count} tokens taken back; {rest}")

    def _set(self, argument: str) -> None:
        from gpt2cli.generation import settings

        name, _, value = argument.replace("=", " ", 1).partition(" ")
        if value.strip():
            self.session.config = settings.change(self.session.config, name, value.strip())
        elif name:
            raise UsageError(f"/set {name} needs a value; /set alone shows all")
        else:
            self.say(_columns(settings.show(self.session.config)))

    def _save(self, argument: str, over: bool = False) -> None:
        if not argument:
            raise UsageError("/save needs the name of a file")
        path, text = Path(os.path.expanduser(argument)), self.session.text
        check_writable(path)
        if path.is_file() and not over:
            raise UsageError(f"{path} exists; /save! {path} writes over it")
        if not text:
            raise UsageError("there is no text to save yet")
        write_file(path, text.encode())
        self.say(f"{len(text):,} characters saved to {path}")

    def _save_over(self, argument: str) -> None:
        self._save(argument, over=True)

    def _tokens(self, _: str) -> None:
        session = self.session
        older = f", {session.dropped:,} older ones forgotten" if session.dropped else ""
        self.say(f"{len(session.window):,} of {session.context_length:,} tokens{older}")
        if session.window:
            self.say(" ".join(map(_quoted, session.pieces)))

    def _reset(self, _: str) -> None:
        self.session.clear()
        self.say("the text is empty")

    def _help(self, _: str) -> None:
        rows = {f"/{name} {COMMANDS[name][1]}".rstrip(): COMMANDS[name][2] for name in COMMANDS}
        self.say(_columns(rows | _KEYS))

    def _quit(self, _: str) -> None:
        raise EOFError


Action = Callable[[Repl, str], None]
COMMANDS: dict[str, tuple[Action, str, str]] = {
    "retry": (Repl._retry, "", "make the last completion again, with the next seed"),
    "undo": (Repl._undo, "", "take back the last line and its completion"),
    "set": (Repl._set, "[NAME VALUE]", 'show all settings, or change one: /set stop "\\n"'),
    "save": (Repl._save, "FILE", "write the text so far to a new file"),
    "save!": (Repl._save_over, "FILE", "the same, over one that is there"),
    "tokens": (Repl._tokens, "", "show the tokens that the model attends to"),
    "reset": (Repl._reset, "", "begin with an empty text"),
    "clear": (Repl._reset, "", "the same as /reset"),
    "help": (Repl._help, "", "show this"),
    "quit": (Repl._quit, "", "leave, as Ctrl-D does"),
}
_KEYS = {
    "Enter": "send; with nothing typed, let the model continue",
    "a space first": "continue the same line of the text, else a new one begins",
    "Esc Enter": "begin a new line (as Alt-Enter does, or a backslash and Enter)",
    "//…": "text that begins with a slash",
    "Ctrl-C": "stop the completion, which stays; or empty the line",
}


def entries(stream: BinaryIO) -> Iterator[str]:
    """Lines as they come; a backslash at the end of one makes the next part of it."""
    parts: list[str] = []
    for number, data in enumerate(iter(stream.readline, b""), start=1):
        line = decode_utf8(data, f"line {number} of stdin")
        line = without_newline(line)
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield "\n".join(parts)
            parts = []
    if parts:
        yield "\n".join(parts)


def _columns(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{key:{width}}  {value}" for key, value in rows.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _summary(recorder: Recorder, seed: int) -> str:
    first, speed = recorder.time_to_first_token, recorder.tokens_per_second
    parts = [
        f"{recorder.tokens} tokens",
        f"first after {first:.3f} s" if first is not None else "",
        f"{speed:.1f} tokens/s" if speed else "",
        f"seed {seed}",
    ]
    return ", ".join(part for part in parts if part)
