"""The command `gpt2`: one file per command, and the boundary where errors become exit codes.

stdout is for what was asked for, stderr for people. Exit codes: 0 done, 1 failed, 2 wrong
usage, 130 interrupted, 141 the reader of a pipe has gone. Nothing heavy is imported here,
so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main

from gpt2cli.cli.io.terminal import be_quiet, complain, use_colour
from gpt2cli.cli.usage import Command, Group, option_name, option_names, sentence
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.version import __version__

# The commands in the order in which they are wanted, which is that of the README, and what they
# do. Only the one that is called is imported: each costs a start some milliseconds.
COMMANDS = {
    "generate": "Continue a prompt with GPT-2; without one, begin from nothing.",
    "repl": "Write a text together with GPT-2, line by line.",
    "score": "Show how probable a text is, and each token of it.",
    "bulk": "Complete a file of prompts of any size.",
    "replay": "Write recorded texts again, and show where one differs.",
    "serve": "Serve completions over HTTP, as OpenAI's clients ask for them.",
    "play": "Write with a model and look inside it, in the browser.",
    "inspect": "Show what the model is doing when it has read a text.",
    "patch": "Show which activations restore one prompt's answer in another.",
    "heads": "Show induction, previous-token and first-token heads.",
    "diff": "Read a text with two models and show where they disagree.",
    "tokenize": "Show the tokens of a text as the model sees them.",
    "info": "Show a model's size, and whether this machine has the memory.",
    "models": "List models, here or on the hub; pull, rm, path, export.",
    "train": "Fine-tune a model on your texts, or train one from scratch.",
    "bench": "Measure how fast a model is here, and how fast it could be.",
}


FEW_COLLECTIONS = 100_000  # objects made before Python looks for garbage


class _Group(Group):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        with _boundary(ctx.obj):
            return super().invoke(ctx)


@cache
def _command(name: str) -> Any:
    """A command, or the group of those below it, made by Typer of its module."""
    module = import_module(f"gpt2cli.cli.commands.{name}")
    if (own := getattr(module, "app", None)) is None:
        own = typer.Typer(rich_markup_mode=None, add_completion=False)
        own.command(name, cls=Command)(getattr(module, name))
    made = typer.main.get_command(own)
    made.name = name
    return made


@contextmanager
def _boundary(settings: dict[str, Any]) -> Iterator[None]:
    """Turn exceptions into one line on stderr and an exit code; `--debug` lets them through.

    Messages name the command's options in place of the library's settings.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _abandon_stdout()
        sys.exit(141)
    except GPT2CLIError as error:
        if settings.get("debug"):
            raise
        context = settings.get("context")
        complain(error.renamed(option_names(context) if context else {}))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        if settings.get("debug"):
            raise
        _abandon_stdout()
        complain(f"{error.filename or 'cannot write the output'}: {error.strerror or error}")
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):
            complain(sentence(error))
            sys.exit(getattr(error, "exit_code", 2))
        if settings.get("debug") or hasattr(error, "exit_code"):  # the latter is `typer.Exit`
            raise
        # The rest are bugs, or exhausted memory, which every library reports in its own way.
        if isinstance(error, MemoryError) or "memory" in str(error):
            complain("out of memory; try a smaller model, fewer samples or a lower precision")
        else:
            complain(f"internal error: {type(error).__name__}: {error} (--debug shows where)")
        sys.exit(1)


def _abandon_stdout() -> None:
    """Point stdout at nothing, so that Python's flush at exit cannot fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


app = typer.Typer(
    cls=_Group,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": option_name,
    },
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 closed pipe, "
    "143 terminated while training or in a bulk run.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpt2cli {__version__}")
        raise typer.Exit


@app.callback()
def gpt2(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """GPT-2 in your shell: generate text, look at models, train your own.

    \b
    Examples:
      gpt2 generate --model bard "ROMEO:"
      gpt2 generate "Hello, I'm a language model,"
      gpt2 info --all
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def run() -> None:
    """What a shell starts: `main`, in a process that is young and ends with it."""
    # To look for garbage every 700 objects, while modules are imported, and among all objects at
    # the end, takes a sixth of a short command.
    gc.set_threshold(FEW_COLLECTIONS)
    try:
        main()
    finally:
        gc.freeze()


def main() -> None:
    """Run the command line and leave with its exit code."""
    settings: dict[str, Any] = {}
    be_quiet(False)
    use_colour("auto")
    with _boundary(settings):
        try:
            code = app(prog_name="gpt2", obj=settings, standalone_mode=False)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.exit(code or 0)
