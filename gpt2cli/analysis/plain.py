"""Results as JSON can hold them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from gpt2cli.arrays import NDArray


def plain(value: Any) -> Any:
    """Arrays as lists, dataclasses as objects, floats to six digits: fp32 has no more."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, np.ndarray):
        return (_six_digits(value) if value.dtype.kind == "f" else value).tolist()
    return value


def _six_digits(x: NDArray) -> NDArray:
    """Rounded to the significant digits of fp32."""
    x = x.astype(np.float64)
    magnitude = np.floor(np.log10(np.abs(x), out=np.zeros_like(x), where=x != 0))
    scale = 10.0 ** (5 - magnitude)
    rounded: NDArray = np.round(x * scale) / scale
    return rounded
