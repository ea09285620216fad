"""A hub on 127.0.0.1 for tests: the part of the Hugging Face protocol that downloads use.

Files of the repository are served under `url`; those that the hub keeps in large file
storage are redirected to a second port, as the real one redirects to another host.
What goes wrong on a network is a switch: see the attributes of `HubServer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import unquote, urlsplit

_PIECE = 64 * 1024


@dataclass(frozen=True)
class Request:
    """One line of the server's log."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    on_cdn: bool


@dataclass
class _Repo:
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by commit, then by name
    refs: dict[str, str] = field(default_factory=dict)  # commit by branch or tag
    lfs: dict[str, set[str]] = field(default_factory=dict)  # names by commit


class HubServer:
    """A context manager; `url` is what HF_ENDPOINT has to be. Switches may be set at any time.

    - `token`: what every request to the hub, though not to its storage, must bear.
    - `gated`: repositories that are listed, and whose files are refused.
    - `unknown_status`: the answer for a repository that does not exist (the hub: 404 or 401).
    - `status`: if not None, the answer to every request whose path contains `status_for`.
    - `cut_at`: break the connection when this offset (bytes) of a weights file is reached,
      `cuts` times (None: always); with `reset`, not by an early end but by a TCP reset.
    - `pause`: seconds to wait before each 64 KiB of weights.
    - `ignore_range`: answer 200 and everything where a range was asked for.
    - `spoil`: weights arrive with a byte changed.
    - `shorten`: weights are this many bytes long, although the hub announces more.
    - `endless`: names of files that continue after the size that was announced, for some megabytes.
    - `listing`: the body of every answer that lists a repository.
    - `headers`: what to put in the place of the headers of files, by name.
    """

    def __init__(self) -> None:
        self.repos: dict[str, _Repo] = {}
        self.renamed: dict[str, str] = {}
        self.storage: dict[str, bytes] = {}  # large files, by SHA-256
        self.requests: list[Request] = []
        self.token: str | None = None
        self.gated: set[str] = set()
        self.unknown_status = 404
        self.status: int | None = None
        self.status_for = ""
        self.cut_at: int | None = None
        self.cuts: int | None = None
        self.reset = False
        self.pause = 0.0
        self.ignore_range = False
        self.spoil = False
        self.shorten: int | None = None
        self.endless: set[str] = set()
        self.listing: bytes | None = None
        self.headers: dict[str, str] = {}
        self._servers = [_Listener(self, on_cdn=False), _Listener(self, on_cdn=True)]

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        """The endpoint."""
        return self._servers[0].url

    @property
    def cdn_url(self) -> str:
        """Where large files are: another port, so for a client another origin."""
        return self._servers[1].url

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes],
        *,
        lfs: Collection[str] | None = None,
        revision: str = "main",
    ) -> str:
        """Commit `files` to a branch, of a new repository or of one that is there.

        `lfs` names the files in large file storage; if None, all safetensors are.
        Returns the commit.
        """
        repo = self.repos.setdefault(repo_id, _Repo())
        names = lfs if lfs is not None else [n for n in files if n.endswith(".safetensors")]
        self.storage |= {hashlib.sha256(files[name]).hexdigest(): files[name] for name in names}
        commit = hashlib.sha1(f"{repo_id} {len(repo.files)}".encode()).hexdigest()
        repo.files[commit], repo.lfs[commit] = dict(files), set(names)
        repo.refs[revision] = commit
        return commit

    def rename(self, old: str, new: str) -> None:
        """Redirect a repository's former name to its present one."""
        self.renamed[old] = new

    def cut(self, offset: int, times: int | None = None, *, reset: bool = False) -> None:
        """Break connections at an offset; see `cut_at`."""
        self.cut_at, self.cuts, self.reset = offset, times, reset

    def fetched(self) -> list[str]:
        """The names of the files whose contents were asked for, in order, resumptions too."""
        gets = (r for r in self.requests if r.method == "GET" and "/resolve/" in r.path)
        return [r.path.split("/resolve/")[1].split("/", 1)[1] for r in gets]

    def stored(self) -> list[Request]:
        """The requests for contents that reached the storage."""
        return [r for r in self.requests if r.on_cdn and r.method == "GET"]

    def takes_cut(self) -> bool:
        """Whether the connection at hand is one to break; counts it."""
        if self.cut_at is None or self.cuts == 0:
            return False
        if self.cuts is not None:
            self.cuts -= 1
        return True


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, *, on_cdn: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.on_cdn = hub, on_cdn

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr; the log is `HubServer.requests`."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        bearer = self.headers.get("Authorization")
        hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), bearer, self.server.on_cdn)
        )
        if hub.status is not None and hub.status_for in path:
            self._answer(hub.status)
        elif self.server.on_cdn:
            sha256, name = path[1:].split("/", 1)
            self._contents(hub.storage[sha256], name, {})
        elif hub.token and bearer != f"Bearer {hub.token}":
            message = "Invalid credentials in Authorization header" if bearer else "Sign in first"
            self._answer(401, {"X-Error-Message": message})
        elif path.startswith("/api/models/"):
            self._list(*path.removeprefix("/api/models/").split("/revision/"))
        elif "/resolve/" in path:
            repo_id, rest = path[1:].split("/resolve/")
            self._resolve(repo_id, *rest.split("/", 1))
        else:
            self._answer(404)

    def _repo(self, repo_id: str, revision: str) -> tuple[_Repo, str] | None:
        """The repository and the commit, else None after an answer that says why."""
        hub = self.server.hub
        if repo_id in hub.renamed:
            self._answer(307, {"Location": self.path.replace(repo_id, hub.renamed[repo_id], 1)})
        elif (repo := hub.repos.get(repo_id)) is None:
            code = {"X-Error-Code": "RepoNotFound"} if hub.unknown_status == 404 else {}
            self._answer(hub.unknown_status, code)
        elif (commit := repo.refs.get(revision, revision)) not in repo.files:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo, commit
        return None

    def _list(self, repo_id: str, revision: str = "main") -> None:
        if found := self._repo(repo_id, revision):
            repo, commit = found
            listing = {
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit,
                "siblings": [{"rfilename": name} for name in repo.files[commit]],
            }
            body = self.server.hub.listing or json.dumps(listing).encode()
            self._answer(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        if not (found := self._repo(repo_id, revision)):
            return
        hub, (repo, commit) = self.server.hub, found
        data = repo.files[commit].get(name)
        headers = {"X-Repo-Commit": commit} | hub.headers
        if repo_id in hub.gated:
            status = 403 if self.headers.get("Authorization") else 401
            self._answer(status, {"X-Error-Code": "GatedRepo"})
        elif data is None:
            self._answer(404, headers | {"X-Error-Code": "EntryNotFound"})
        elif name in repo.lfs[commit]:
            sha256 = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            headers = linked | headers
            self._answer(302, {"Location": f"{hub.cdn_url}/{sha256}/{name}"} | headers)
        else:
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self._contents(data, name, {"ETag": f'"{sha1}"'} | headers)

    def _contents(self, data: bytes, name: str, headers: dict[str, str]) -> None:
        """A file, or the range of it that was asked for, with whatever is set to go wrong."""
        hub, status, start = self.server.hub, 200, 0
        weights = name.endswith(".safetensors")
        if weights and self.command == "GET":
            data = data[: hub.shorten]
            data = bytes([data[0] ^ 1]) + data[1:] if hub.spoil else data
        if (wanted := self.headers.get("Range")) and not hub.ignore_range:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        if name in hub.endless and self.command == "GET":
            self._go_on_without_end(status, headers, data)
        elif start >= len(data) > 0:
            self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
        elif weights and self.command == "GET":
            self._head(status, headers, len(data) - start)
            self._stream(data, start)
        else:
            self._answer(status, headers, data[start:])

    def _stream(self, data: bytes, start: int) -> None:
        hub = self.server.hub
        end = len(data)
        if end > (hub.cut_at or 0) and (cutting := hub.takes_cut()):
            end = max(start, cast(int, hub.cut_at))
        else:
            cutting = False
        for offset in range(start, end, _PIECE):
            time.sleep(hub.pause)
            self.wfile.write(data[offset : min(offset + _PIECE, end)])
        if cutting:
            self.close_connection = True
            if hub.reset:
                time.sleep(0.05)  # a reset may overtake what was sent
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())

    def _go_on_without_end(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        piece = data * -(-_PIECE // len(data)) if data else bytes(_PIECE)
        for _ in range(100):
            self.wfile.write(piece)
            time.sleep(0.0005)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self._head(status, headers or {}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)
