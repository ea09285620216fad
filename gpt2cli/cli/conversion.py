"""Values of options that are converted here, since Typer would import pydantic for it: 60 ms.

Only plain forms are, which leave no doubt: "12" where a whole number is wanted. Typer converts
all others, and finds what is wrong with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

_Process: TypeAlias = Callable[[Any, Any], Any]

_WHOLE = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_UNKNOWN = object()


def convert_plainly(params: Iterable[Any]) -> None:
    """Let the parameters of a command convert plain values themselves."""
    for param in params:
        # Typer before 0.26 has click's types, which convert at once.
        if hasattr(param, "type_descriptor") and "process_value" not in vars(param):
            param.process_value = _converting(param, param.process_value)


def _converting(param: Any, otherwise: _Process) -> _Process:
    """What processes a value: as `otherwise`, but for those that are plain."""

    def process_value(ctx: Any, value: Any) -> Any:
        is_multiple = param.multiple or param.nargs != 1
        convert = _several if is_multiple else _plain
        found = convert(value, param.type_descriptor.annotation)
        if found is _UNKNOWN or not _is_within(found, param) or (param.required and not found):
            return otherwise(ctx, value)
        return param.callback(ctx, param, found) if param.callback else found

    return process_value


def _plain(value: Any, kind: Any) -> Any:
    """One value as a `kind`."""
    if value is None or (type(value) is kind and kind in (str, int, float, bool)):
        return value
    form = {int: _WHOLE, float: _NUMBER}.get(kind)
    return kind(value) if form and type(value) is str and form.fullmatch(value) else _UNKNOWN


def _several(values: Any, kind: Any) -> Any:
    """The texts of an option that may be given several times."""
    if values is None:
        return ()
    if kind == list[str] and all(type(value) is str for value in values):
        return list(values)
    return _UNKNOWN


def _is_within(value: Any, param: Any) -> bool:
    """Whether a number is within its bounds, if it has some."""
    least, most = param.min, param.max
    if value is None or least is most is None:
        return True
    return (least is None or value >= least) and (most is None or value <= most)
