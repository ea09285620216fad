"""A command takes whole groups of options, and Typer sees each of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.usage import Command
from gpt2cli.errors import UsageError


@dataclass(frozen=True)
class Shape(Group):
    """Shape of it"""

    width: Annotated[int, typer.Option("--width", "-w", envvar="SHAPE_WIDTH", help="Wide.")] = 3
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Said.")] = None
    deep: Annotated[bool, typer.Option("--deep/--flat", help="Deep.")] = False


@dataclass(frozen=True)
class Solid(Shape):
    """Solid of it"""

    depth: Annotated[float | None, typer.Option("--depth", min=1, help="Depth.")] = None


SEEN: list[object] = []


def app_of(*commands: object) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    for command in commands:
        app.command(cls=Command)(command)  # type: ignore[type-var]
    app.command()(lambda: None)  # a single command takes no word
    return app


@grouped
def draw(
    *,
    name: Annotated[str, typer.Argument(help="What.")] = "box",
    solid: Solid,
    loud: Annotated[bool, typer.Option("--loud")] = False,
) -> None:
    """Draw it."""
    SEEN.append((name, solid, loud))


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[str, Solid, bool]:
    SEEN.clear()
    done = CliRunner().invoke(app_of(draw), ["draw", *arguments], env=env, obj={})
    assert done.exit_code == 0, done.output
    [seen] = SEEN
    return seen  # type: ignore[return-value]


def test_fields_are_options_with_their_defaults_and_types() -> None:
    assert run() == ("box", Solid(), False)
    options = ("-w", "7", "--tag", "a", "--tag", "b", "--depth", "2.5", "--deep")
    name, solid, loud = run("ball", *options)
    assert (name, loud) == ("ball", False)
    assert (solid.width, solid.tags, solid.depth, solid.deep) == (7, ["a", "b"], 2.5, True)
    assert solid.typed == {"name", "width", "tags", "depth", "deep"}


def test_what_the_environment_sets_was_not_typed() -> None:
    _, solid, _ = run("--tag", "a", env={"SHAPE_WIDTH": "9"})
    assert (solid.width, solid.typed) == (9, {"tags"})


def test_help_lists_the_options_under_the_headings_of_their_groups() -> None:
    done = CliRunner().invoke(app_of(draw), ["draw", "--help"], obj={})
    assert done.exit_code == 0
    headings = [line for line in done.output.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Arguments:", "Solid of it:", "Options:"]
    solid = done.output.split("Solid of it:")[1].split("Options:")[0]
    named = ("--width", "--tag", "--deep", "--depth")
    assert [solid.index(name) for name in named] == sorted(solid.index(name) for name in named)
    assert "--loud" not in solid


def test_a_wrong_value_is_refused_by_its_option() -> None:
    done = CliRunner().invoke(app_of(draw), ["draw", "--depth", "0.5"], obj={})
    assert done.exit_code == 2
    assert "--depth" in done.output


def test_an_option_needs_its_company_only_if_it_was_typed() -> None:
    needed = {"depth": "tags"}
    Solid(depth=2.0).check_company(needed)
    Solid(depth=2.0, tags=["a"], typed=frozenset({"depth"})).check_company(needed)
    with pytest.raises(UsageError, match=r"^depth needs tags$"):
        Solid(depth=2.0, typed=frozenset({"depth"})).check_company(needed)
    Solid(depth=2.0, typed=frozenset({"depth"})).check_company(needed, base=Shape(tags=["b"]))
