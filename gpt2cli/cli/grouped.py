"""Options declared once: a group of them is a frozen dataclass, and a command takes whole groups.

Typer has no such feature, but it reads a function's `__signature__`. The first line of a group's
docstring is its heading in `--help`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import update_wrapper
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from gpt2cli.cli.usage import is_typed
from gpt2cli.errors import UsageError


@dataclass(frozen=True)
class Group:
    """A group of options; `typed` names those given on the command line, not the environment."""

    typed: frozenset[str] = field(default=frozenset(), kw_only=True)

    def check_company(self, needed: Mapping[str, str], base: object = None) -> None:
        """Raise `UsageError` for an option that was typed without the one it needs.

        `base` holds the values of options that were not given.
        """
        for name, other in needed.items():
            present = getattr(self, other) is not None or getattr(base, other, None) is not None
            if name in self.typed and not present:
                raise UsageError(f"{name} needs {other}", name, other)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take whole groups: Typer sees one option for each of their fields."""
    hints = {name: _declared(hint) for name, hint in _hints(command).items()}
    groups = {name: kind for name, kind in hints.items() if _is_group(kind)}

    def run(ctx: typer.Context, **given: Any) -> None:
        typed = frozenset(name for name in given if is_typed(name, ctx))
        for name, kind in groups.items():
            own = {f.name: given.pop(f.name) for f in _fields(kind)}
            given[name] = kind(typed=typed, **own)
        command(**given)

    parameters = [inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context)]
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _options(groups[parameter.name])
        else:
            annotation = hints[parameter.name]
            parameters.append(parameter.replace(annotation=annotation, kind=_KEYWORD))
    update_wrapper(run, command)
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _hints(declared: Any) -> dict[str, Any]:
    return get_type_hints(declared, include_extras=True)


def _declared(hint: Any) -> Any:
    """An annotation as it stands in the source: Python 3.10 adds None to one with that default."""
    inner = [a for a in get_args(hint) if get_origin(a) is Annotated]
    return hint if get_origin(hint) is Annotated or not inner else inner[0]


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _is_group(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Group)


def _fields(kind: Any) -> Iterator[Any]:
    return (f for f in fields(kind) if f.name != "typed")


def _options(kind: Any) -> Iterator[inspect.Parameter]:
    """A parameter for each field, under the group's heading."""
    heading = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    hints = _hints(kind)
    for f in _fields(kind):
        annotation = _headed(hints[f.name], heading)
        yield inspect.Parameter(f.name, _KEYWORD, default=f.default, annotation=annotation)


def _headed(annotation: Any, heading: str) -> Any:
    assert get_origin(annotation) is Annotated, annotation
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.rich_help_panel = heading
    return Annotated[kind, option]
