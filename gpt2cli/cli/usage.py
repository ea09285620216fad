"""How the command line is read: names that other programs use, and wrong usage in one sentence.

Typer bundles its own click from 0.26 on and uses the installed one before, so classes of
either are recognised by their attributes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup

from gpt2cli.cli.conversion import convert_plainly
from gpt2cli.cli.io.terminal import be_quiet, notice, use_colour
from gpt2cli.errors import UsageError, did_you_mean, nearest

# Other programs' names of options: understood, but neither shown nor completed.
OPTION_ALIASES = {
    "max-new-tokens": "max-tokens",  # transformers
    "n-predict": "max-tokens",  # llama.cpp
    "predict": "max-tokens",
    "temp": "temperature",
    "repeat-penalty": "repetition-penalty",
    "num-beams": "beams",  # transformers
    "num-samples": "samples",
    "dtype": "precision",  # vLLM
    "quantize": "precision",
    "save-dtype": "save-precision",
    "choices": "choice",
    "below": "max-perplexity",
    "above": "min-perplexity",
}
# Other programs' names of commands, and likely guesses: suggested, not run.
_COMMAND_HINTS = {
    "chat": "repl",
    "complete": "generate",
    "run": "generate",
    "batch": "bulk",
    "perplexity": "score",
    "download": "models pull",
    "pull": "models pull",
    "rm": "models rm",
    "list": "models",
    "ls": "models",
    "help": "--help",
    "version": "--version",
    "-V": "--version",
}
_SUBCOMMAND_HINTS = {
    "download": "pull",
    "fetch": "pull",
    "get": "pull",
    "delete": "rm",
    "remove": "rm",
    "where": "path",
    "list": "",
    "ls": "",
}


def option_name(name: str) -> str:
    """Our name of an option for one that another program has, both without their dashes."""
    return OPTION_ALIASES.get(name, name)


def environment_name(option: str) -> str:
    """Where an option finds its default: GPT2_TOP_K for --top-k."""
    return "GPT2_" + option.lstrip("-").replace("-", "_").upper()


class Command(TyperCommand):
    """A command that passes its context to the boundary, and applies the common options."""

    allow_extra_args = True  # rejected later, with a better message

    def __init__(self, *args: Any, **details: Any) -> None:
        super().__init__(*args, **details)
        if any(param.name == "model" and param.envvar for param in self.params):
            self.epilog = (
                "Defaults can be set in the environment: GPT2_MODEL for --model, and so on for "
                "what chooses model, machine, sampling and length."
            )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line into the context."""
        convert_plainly(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List the options under the headings of their groups."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                is_option = param.param_type_name == "option"
                heading = getattr(param, "rich_help_panel", None) if is_option else "Arguments"
                # --help itself stands where options are that all commands have.
                common = "Messages" if "Messages" in sections else "Options"
                sections.setdefault(heading or common, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def invoke(self, ctx: Any) -> Any:
        """Run it. Raises `UsageError` for extra arguments, -q with -v and invalid colours."""
        _heed(ctx)
        if ctx.args:
            texts = any(param.metavar == "TEXT" for param in self.params)
            hint = "; put quotes around a text of several words" if texts else ""
            raise UsageError(f"an argument is one too many, {ctx.args[0]!r}{hint}")
        if ctx.params.get("quiet") and ctx.params.get("verbose"):
            raise UsageError("--quiet and --verbose exclude each other")
        _tell_of_misspelt(ctx)
        return super().invoke(ctx)


class Group(TyperGroup):
    """A group of commands that suggests the command probably meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the subcommand."""
        convert_plainly(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run it, or its subcommand. Raises `UsageError` for invalid colours."""
        _heed(ctx)
        return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command. Raises `UsageError` if there is none of that name."""
        if args and not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            hints = _SUBCOMMAND_HINTS if ctx.parent else _COMMAND_HINTS
            likely = nearest(args[0], self.list_commands(ctx))
            meant = [hints[args[0]]] if args[0] in hints else likely
            names = " or ".join(repr(f"{ctx.command_path} {name}".rstrip()) for name in meant)
            hint = f"; did you mean {names}?" if names else _lists_them(ctx)
            raise UsageError(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


def _heed(ctx: Any) -> None:
    """Pass the context to the boundary, and apply the options common to all commands."""
    ctx.obj["context"] = ctx
    if ctx.params.get("quiet"):
        be_quiet()
    if when := ctx.params.get("color"):
        use_colour(when)


def _lists_them(ctx: Any) -> str:
    return f"; {ctx.command_path} --help lists them"


def _path(ctx: Any) -> str:
    """The command without the program before it: generate, models pull, or nothing."""
    return str(ctx.command_path).partition(" ")[2]


def option_names(ctx: Any) -> Mapping[str, str]:
    """The user's name of each setting: --top-k, or GPT2_TOP_K if set in the environment."""
    options = [param for param in ctx.command.params if param.param_type_name == "option"]
    return {param.name.rstrip("_"): _name_of(param, ctx) for param in options}


def _name_of(param: Any, ctx: Any) -> str:
    source = ctx.get_parameter_source(param.name)
    if param.param_type_name != "option":
        return str(param.metavar or param.name.upper())
    if source is not None and source.name == "ENVIRONMENT":
        return str(param.envvar)
    return next((name for name in param.opts if name.startswith("--")), str(param.opts[0]))


def is_typed(name: str, ctx: Any) -> bool:
    """Whether a parameter stands on the command line, and is no default from elsewhere."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def sentence(error: Any) -> str:
    """The message for an exception of click, in the style of all other errors."""
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        return _no_such_option(error.option_name, ctx)
    if hasattr(error, "option_name"):
        needs = "needs a value" if "requires" in error.message else "takes no value"
        return f"{error.option_name} {needs}"
    if hasattr(error, "param_type") and param is not None:
        metavar = f" {param.metavar}" if param.param_type_name == "option" else ""
        return f"{_path(ctx)} needs {_name_of(param, ctx)}{metavar}"
    if param is not None:
        return f"{_name_of(param, ctx)} must be {_wanted(error)}"
    message = str(error.format_message())
    return message[:1].lower() + message[1:].rstrip(".")


def _no_such_option(name: str, ctx: Any) -> str:
    shown = (param for param in ctx.command.get_params(ctx) if not getattr(param, "hidden", False))
    choices = [name for param in shown for name in (*param.opts, *param.secondary_opts)]
    likely = _COMMAND_HINTS.get(name, name) if ctx.parent is None else name
    hint = did_you_mean(likely, choices)
    if not hint and hasattr(ctx.command, "commands"):
        hint = "; the options of a command come after it"
    return f"{_path(ctx) or 'gpt2'} has no option {name!r}{hint or _lists_them(ctx)}"


def _wanted(error: Any) -> str:
    """What a value had to be, and what it is."""
    message, param = str(error.message), error.param
    # Typer keeps the bounds with the parameter, click with its type.
    bounds = getattr(param, "type", None) if getattr(param, "min", None) is None else param
    least, most = getattr(bounds, "min", None), getattr(bounds, "max", None)
    value = _value(error)
    if any(word in message for word in ("greater", "less", "range")):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        value = value.strip("'")
    elif "integer" in message:
        wanted = "a whole number"
    elif "number" in message or "float" in message:
        wanted = "a number"
    elif "bool" in message:
        wanted = "true or false"
    else:
        return f"something else: {message[:1].lower()}{message[1:].rstrip('.')}"
    return f"{wanted}, not {value}" if value else wanted


def _value(error: Any) -> str:
    """The value given: in the message of click's exception, in the cause of Typer's."""
    if hasattr(error.__cause__, "errors"):
        return repr(error.__cause__.errors()[0]["input"])
    found = re.match(r"(?:Value )?(.+) is not ", str(error.message))
    return found[1] if found else ""


def _tell_of_misspelt(ctx: Any) -> None:
    """A word on each variable that is nearly one of ours; others may have a GPT2_… of theirs."""
    given = sorted(name for name in os.environ if name.startswith("GPT2_"))
    known = set(_variables(ctx.find_root().command, ctx)) if given else set()
    for name in given:
        if name not in known:
            bare = {variable.removeprefix("GPT2_"): variable for variable in known}
            if near := nearest(name.removeprefix("GPT2_"), bare, cutoff=0.85):
                notice(f"{name} sets nothing; did you mean {bare[near[0]]}?", asked=True)


def _variables(command: Any, ctx: Any) -> Iterator[str]:
    """The variables that this command and those below it look at."""
    for param in command.params:
        if isinstance(param.envvar, str):
            yield param.envvar
    if hasattr(command, "list_commands"):
        for name in command.list_commands(ctx):
            yield from _variables(command.get_command(ctx, name), ctx)
