"""Callbacks by which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of what is made, the bytes done and the bytes in all."""

Advance = Callable[[int], object]
"""Called with how many more tokens are done."""
