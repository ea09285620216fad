"""Plain values are converted without pydantic, into what Typer would have made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.core import TyperCommand
from typer.testing import CliRunner

from gpt2cli.cli.usage import Command

SEEN: list[object] = []


def remember(value: Any) -> Any:
    SEEN.append(value)
    return value


def command(
    text: Annotated[str | None, typer.Argument()] = None,
    word: Annotated[str, typer.Option(callback=remember)] = "a",
    whole: Annotated[int | None, typer.Option(min=-5, max=400, envvar="WHOLE")] = None,
    number: Annotated[float, typer.Option(min=0.5)] = 1,
    free: Annotated[float | None, typer.Option()] = None,
    listed: Annotated[list[str] | None, typer.Option()] = None,
    several: Annotated[list[int] | None, typer.Option()] = None,
    flag: Annotated[bool, typer.Option(envvar="FLAG")] = False,
    either: Annotated[bool | None, typer.Option("--yes/--no")] = None,
    file: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """A command with an option of each type that ours have."""
    SEEN.append(locals())


def build(cls: type[TyperCommand]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(cls=cls)(command)
    return app


OURS, TYPERS = build(Command), build(TyperCommand)


def outcome(app: typer.Typer, *arguments: str, **environment: str) -> tuple[object, ...]:
    SEEN.clear()
    done = CliRunner().invoke(app, arguments, env=environment, obj={})
    return done.exit_code, done.output, type(done.exception), repr(SEEN)


numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r"[-+]?[0-9_]{1,5}(\.[0-9]{0,3})?(e[0-9])?", fullmatch=True),
    st.text(alphabet="0123456789+-._eE ٣", max_size=6),
)


@pytest.mark.parametrize("option", ["--whole", "--number", "--free", "--several"])
@given(value=numbers)
@example(value="007")
@example(value="-0")
@example(value="0.50")
@example(value="400")
@example(value="401")
@example(value="1e2")
@example(value="١")
@settings(deadline=None)
def test_numbers_are_read_as_typer_reads_them(option: str, value: str) -> None:
    argument = f"{option}={value}"
    assert outcome(OURS, argument) == outcome(TYPERS, argument)


@pytest.mark.parametrize("option", ["--word", "--listed", "--file"])
@given(value=st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(deadline=None)
def test_texts_are_read_as_typer_reads_them(option: str, value: str) -> None:
    argument = f"{option}={value}"
    assert outcome(OURS, argument) == outcome(TYPERS, argument)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("text", "--flag", "--no"),
        ("--listed", "a", "--listed", "b", "--several", "1", "--several", "2"),
        ("--yes", "--word", ""),
        ("--nothing",),
        ("--whole",),
    ],
)
@pytest.mark.parametrize("environment", [{}, {"WHOLE": "7", "FLAG": "1"}, {"WHOLE": "x"}])
def test_command_lines_mean_what_they_mean_to_typer(
    arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    assert outcome(OURS, *arguments, **environment) == outcome(TYPERS, *arguments, **environment)
