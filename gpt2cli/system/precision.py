"""The precisions that weights can have, by the names that the field gives them.

Quantized weights are stored in groups of 64, each with a scale in bf16, of which 4 bits have two
factors in 8; they are used on CPUs only.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2cli.errors import DeviceError, did_you_mean

_GROUP = 64


@dataclass(frozen=True, slots=True)
class Precision:
    """How a number is stored: in `bits` bits, as PyTorch's type `torch`, or quantized.

    `scale_bits` are those of the scales of a group.
    """

    bits: int
    torch: str | None = None
    scale_bits: int = 0

    @property
    def is_quantized(self) -> bool:
        """Whether numbers are integers with scales, for which PyTorch has no type."""
        return self.torch is None

    @property
    def bytes(self) -> float:
        """Bytes per weight, including its share of a scale."""
        return (self.bits + self.scale_bits / _GROUP) / 8


PRECISIONS = {
    "fp32": Precision(32, "float32"),
    "bf16": Precision(16, "bfloat16"),
    "fp16": Precision(16, "float16"),
    "int8": Precision(8, scale_bits=16),
    "int4": Precision(4, scale_bits=32),
}
FLOATS = tuple(name for name, precision in PRECISIONS.items() if not precision.is_quantized)
HALVES = tuple(name for name in FLOATS if PRECISIONS[name].bits == 16)
QUANTIZED = tuple(name for name in PRECISIONS if name not in FLOATS)
_BY_TORCH = {precision.torch: name for name, precision in PRECISIONS.items() if precision.torch}


def parse(
    name: str, allowed: tuple[str, ...] = tuple(PRECISIONS), setting: str = "precision"
) -> str:
    """A key of `PRECISIONS` for its name, or PyTorch's. Raises `DeviceError` if not `allowed`.

    `setting` is what the message calls it.
    """
    known = _BY_TORCH.get(name, name)
    if known not in allowed:
        *others, last = allowed
        raise DeviceError(
            f"{setting} must be {', '.join(others)} or {last}, not {name!r}"
            f"{did_you_mean(name, allowed)}",
            setting,
        )
    return known


def torch_name(precision: str) -> str:
    """PyTorch's name of the type that products are computed in."""
    return PRECISIONS[precision].torch or "float32"
