"""What long work calls, so that somebody can watch."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being made, how many bytes of it are there, and how many there will be."""

Advance = Callable[[int], object]
"""Called with how many more tokens are done."""
