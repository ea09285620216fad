"""Where a server listens: a port or a Unix socket, taken before anything expensive begins."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from gpt2cli.errors import GPT2CLIError, UsageError

_BACKLOG = 2048


@dataclass(frozen=True)
class Address:
    """A host and port (0 for any that is free), or the path of a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def bind(self) -> socket.socket:
        """A socket that listens. Raises `GPT2CLIError` if there can be none."""
        if self.uds is not None:
            return _bind_path(self.uds)
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no name of a machine"
            raise UsageError(f"host {self.host!r} is unknown: {reason}", "host") from None
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise self._unavailable(error) from None
        return listener

    def _unavailable(self, error: OSError) -> GPT2CLIError:
        where = f"{self.host} port {self.port}"
        if error.errno == errno.EADDRINUSE:
            return GPT2CLIError(f"{where} is taken; choose another port", "port")
        return GPT2CLIError(f"cannot listen on {where}: {error.strerror}")

    def url(self, listener: socket.socket) -> str:
        """How to reach what listens."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        host, port = listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def release(self) -> None:
        """Remove the path of a socket that has been closed."""
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)


def _bind_path(path: Path) -> socket.socket:
    """A socket at a path, which only this user can open; one that nobody listens at is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise UsageError(f"{path} is there and is no socket; choose another path", "uds")
            if _answers(path):
                raise GPT2CLIError(f"{path} is taken by another server; choose another", "uds")
            path.unlink()
        before = os.umask(0o077)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise GPT2CLIError(f"cannot listen at {path}: {error.strerror or error}") from None
    except GPT2CLIError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
