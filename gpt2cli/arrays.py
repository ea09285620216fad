"""The array API standard (data-apis.org/array-api) for NumPy and PyTorch alike."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
from array_api_compat import device

Array = Any  # whatever the standard calls an array
NDArray = np.ndarray[Any, Any]  # NumPy's own

# NumPy follows the standard by itself from 2.1 on.
_NUMPY_CONFORMS = hasattr(np, "cumulative_sum")


def are_numbers(array: Array) -> Any:
    """Whether all elements are finite, as one value on the array's device."""
    if isinstance(array, np.ndarray):  # called per token, so by the fastest way
        with np.errstate(all="ignore"):
            # A sum is not finite if a number is not; else only where they are too large for it.
            return (
                np.isfinite(np.einsum(array, list(range(array.ndim)), []))
                or np.isfinite(array).all()
            )
    xp = array_namespace(array)
    return xp.all(xp.isfinite(array))


def array_namespace(array: Any) -> Any:
    """The module with the standard's functions for this array.

    Like array-api-compat's function, whose NumPy wrapper takes 0.1 s to import.
    """
    if _NUMPY_CONFORMS and isinstance(array, np.ndarray):
        return np
    return array_api_compat.array_namespace(array)


def in_host_memory(array: Array) -> NDArray | None:
    """The same numbers as a NumPy array, uncopied; None if they are in another device's memory."""
    if isinstance(array, np.ndarray):
        return array
    return np.asarray(array) if str(device(array)) == "cpu" else None


def to_device_of(array: Array, numbers: NDArray) -> Array:
    """The same numbers in the library and on the device of `array`, without a wait for a GPU."""
    if isinstance(array, np.ndarray):
        return numbers
    copy = array_namespace(array).asarray(numbers)
    if array.device.type == "cuda":
        # Only from pinned memory does a copy run beside the host.
        copy = copy.pin_memory()
    return copy.to(array.device, non_blocking=True)
