"""The settings of a generation by name, as text that people type and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from gpt2cli.config.fields import coerce
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError, did_you_mean, shown
from gpt2cli.generation.request import GenerationConfig, new_seed

OFF = "off"
_NOT_IN_A_SESSION = ("samples", "beams", "length_penalty", "logprobs", "prompt_logprobs")


def configure(base: SamplingConfig, **given: Any) -> GenerationConfig:
    """`base` with the settings given; None stands for the default, and a missing seed is drawn.

    Beam search samples nothing, so it ignores `base`. Raises `UsageError` for a wrong name or
    value.
    """
    sampling, others = (
        {f.name: str(f.type) for f in fields(k)} for k in (SamplingConfig, GenerationConfig)
    )
    kinds = sampling | others
    for name in given:
        if name not in kinds:
            raise UsageError(f"unknown setting {name!r}{did_you_mean(name, kinds)}")
    given = {n: _of_kind(n, kinds[n], value) for n, value in given.items() if value is not None}
    if given.get("beams") is not None:
        base = SamplingConfig(temperature=0)
    rules = base.updated(**{name: given.pop(name) for name in sampling.keys() & given.keys()})
    values: dict[str, Any] = {"sampling": rules, "seed": new_seed()} | given
    return GenerationConfig(**values)


def _of_kind(name: str, kind: str, value: Any) -> Any:
    """A value as its setting's type has it; JSON has no tuples, and keys that are texts."""
    if name in ("sampling", "constraint"):
        return value
    if kind == "tuple[int, ...]":
        return token_ids(name, value)
    if kind.startswith("tuple"):
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise UsageError(f"{name} must be a text or a list of texts, not {shown(value)}", name)
        return tuple(texts)
    if kind.startswith("Mapping"):
        try:
            return {int(token): float(amount) for token, amount in value.items()}
        except (AttributeError, TypeError, ValueError):
            raise UsageError(f"{name} must map token ids to numbers", name) from None
    return coerce(value, kind, name)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """The value of a setting that is a list of token ids. Raises `UsageError` for another."""
    if not isinstance(value, list | tuple) or not all(type(i) is int for i in value):
        raise UsageError(f"{name} must be a list of token ids, not {shown(value)}", name)
    return tuple(value)


def show(config: GenerationConfig) -> dict[str, str]:
    """Every setting and its value, as `change` reads it."""
    sampling = {name: getattr(config.sampling, name) for name in _names(SamplingConfig)}
    others = {name: getattr(config, name) for name in _names(GenerationConfig)}
    return {name: _shown(value) for name, value in (sampling | others).items()}


def fixed_values() -> dict[str, tuple[str, ...]]:
    """Every setting and its fixed values (on, off); none for a number or a text."""
    kinds = _names(SamplingConfig) | _names(GenerationConfig)
    return {name: _words(kind) for name, kind in kinds.items()}


def change(config: GenerationConfig, name: str, text: str) -> GenerationConfig:
    """`config` with one setting replaced; "off" switches off what can be absent.

    Mirostat switches off the rules that it replaces. Stop strings are one text as it is, or
    several in quotes with the escapes of JSON.
    Raises `UsageError` for an unknown name or a wrong value.
    """
    key = name.lower().replace("-", "_")
    sampling, others = _names(SamplingConfig), _names(GenerationConfig)
    if key not in sampling | others:
        raise UsageError(f"unknown setting {name!r}{did_you_mean(key, sampling | others)}")
    value = _parse(key, (sampling | others)[key], text)
    if key in sampling:
        rules, new = config.sampling, {key: value}
        rules = replace(rules, **new) if value is None else rules.updated(**new)
        return replace(config, sampling=rules)
    changed: GenerationConfig = replace(config, **{key: value})
    return changed


def _names(kind: type[GenerationConfig] | type[SamplingConfig]) -> dict[str, str]:
    """Settings of a session and their types. It has one sample, streamed as it is drawn."""
    types = {f.name: str(f.type) for f in fields(kind) if f.name not in _NOT_IN_A_SESSION}
    return {name: type_ for name, type_ in types.items() if _bare(type_) in _PARSERS}


def _words(kind: str) -> tuple[str, ...]:
    if kind == "bool":
        return ("on", OFF)
    return (OFF,) if kind != _bare(kind) or kind.startswith("tuple") else ()


def _bare(kind: str) -> str:
    """A type annotation without `| None`."""
    return kind.removesuffix(" | None")


def _parse(key: str, kind: str, text: str) -> Any:
    if kind != _bare(kind) and text == OFF:
        return None
    parser, article = _PARSERS[_bare(kind)]
    try:
        return parser(text)
    except (ValueError, KeyError):
        raise UsageError(f"{key} must be {article}, not {text!r}") from None


def _switch(text: str) -> bool:
    return {"on": True, OFF: False}[text]


def _strings(text: str) -> tuple[str, ...]:
    if text == OFF:
        return ()
    if not text.startswith('"'):
        return (text,)
    strings, rest = [], text
    while rest:
        string, end = json.JSONDecoder().raw_decode(rest)
        strings.append(str(string))
        rest = rest[end:].lstrip()
    return tuple(strings)


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (_switch, "on or off"),
    "tuple[str, ...]": (_strings, 'text, or several texts in quotes such as "\\n" "."'),
}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else OFF
    if isinstance(value, tuple):
        return " ".join(json.dumps(text, ensure_ascii=False) for text in value) or OFF
    return OFF if value is None else str(value)
