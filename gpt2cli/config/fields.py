"""Frozen settings from parsed YAML and JSON: keys, types and ranges checked, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2cli.errors import ConfigError, did_you_mean, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Far beyond any GPT-2, and small enough that nothing that loops over them takes long.
_LARGEST = {
    "vocab_size": 10**7,  # training a vocabulary allocates 45 bytes for each
    "context_length": 10**8,
    "emb_dim": 10**6,
    "n_heads": 10**6,
    "n_layers": 10**4,
    "steps": 10**9,
    "batch_size": 10**9,
    "eval_interval": 10**9,
    "warmup_steps": 10**9,
    "seed": 2**63 - 1,
}


def require(condition: bool, key: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {rule}, not {shown(value)}", key)


def require_size(key: str, value: int, least: int) -> None:
    require(value >= least, key, value, f"at least {least}")
    require(value <= _LARGEST[key], key, value, f"at most {_LARGEST[key]:,}")


_T = TypeVar("_T", bound="DataclassInstance")


def build(kind: type[_T], values: Mapping[str, object], source: str) -> _T:
    """Make a config dataclass from parsed YAML or JSON, checking keys and types.

    Raises `ConfigError` that names `source` and the key.
    """
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ConfigError(f"{source}: unknown key {shown(key)}{hint}")
    missing = [n for n, f in known.items() if n not in values and _has_no_default(f)]
    if missing:
        raise ConfigError(f"{source}: missing {', '.join(missing)}")
    types = {name: str(f.type) for name, f in known.items()}
    checked = {k: coerce(v, types[k], f"{source}: {k}") for k, v in values.items()}
    try:
        return kind(**checked)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _has_no_default(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def coerce(value: object, annotation: str, where: str) -> Any:
    """Accept exactly the annotated type; a float may be written 1, 1.0 or 1e-5."""
    kind, optional = annotation.removesuffix(" | None"), annotation.endswith(" | None")
    if value is None and optional:
        return None
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    # YAML 1.1 reads 1e-5, which has no dot, as a string.
    if kind == "float" and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    article = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
    raise ConfigError(f"{where} must be {article}, not {shown(value)}", where)
