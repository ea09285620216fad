"""The page at `/`: its files, which anyone may read, and what browsers must not do with it."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ROOT, PREFIX = "/", "/page/"
FILES = Path(__file__).parents[1] / "page"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, no scripts or styles in the page itself, and no page around it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


@cache
def files() -> dict[str, Path]:
    """All that there is, by the path in a URL."""
    found = (path for path in FILES.rglob("*") if path.suffix in _KINDS)
    named = {PREFIX + path.relative_to(FILES).as_posix(): path for path in found}
    named[ROOT] = named.pop(f"{PREFIX}index.html")
    return named


def routes() -> list[Route]:
    """Where the files are found."""
    return [Route(path, _file, methods=["GET"]) for path in files()]


async def _file(request: Request) -> Response:
    path = files()[request.url.path]
    data, headers = path.read_bytes(), dict(_HEADERS)
    if "gzip" in request.headers.get("accept-encoding", ""):
        data, headers["content-encoding"] = _packed(data), "gzip"
    return Response(data, headers=headers, media_type=_KINDS[path.suffix])


@cache
def _packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)
