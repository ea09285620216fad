"""How a server is to behave, in data: who may ask, and how much at once."""

from __future__ import annotations

from dataclasses import dataclass, field

LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")  # names of this machine


@dataclass(frozen=True)
class Policy:
    """Who may ask: those who know the `key`, if there is one, and who name one of the `hosts`.

    A page on the web can let a name of its own point to 127.0.0.1 ("DNS rebinding") but not name
    another host than that, so a server on a loopback address names its hosts.
    """

    key: str | None = None
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to serve, the same for all processes of a server."""

    policy: Policy = field(default_factory=Policy)
    origins: tuple[str, ...] = ()
    max_sequences: int | None = None
    queue: int = 256
    workers: int = 1
    quiet: bool = False  # say nothing but what is wrong
    log_json: bool = False
