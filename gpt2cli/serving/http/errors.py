"""What went wrong, as OpenAI's clients read it: a status, and an object that says why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.files import to_json
from gpt2cli.serving.completions import URL, error, what_is_wrong
from gpt2cli.serving.http.engine import Broken, Busy
from gpt2cli.serving.http.service import Unknown

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_REASONS = {
    404: "there is nothing at {path}; completions are at POST " + URL,
    405: "{method} is not possible at {path}",
}
# A client need not try again what will fail again.
_REPEATS = {"x-should-retry": "false"}


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON."""
    return Response(to_json(content), status, headers, media_type="application/json")


def failure(
    status: int,
    message: str,
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response that says why there is no other."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return json_response(error(message, kind, code=code), status, headers)


def response_to(found: GPT2CLIError) -> Response:
    """The response to a request that failed."""
    if isinstance(found, Busy):
        wait = {"retry-after": str(math.ceil(found.seconds))}
        return failure(429, str(found), code="queue_full", headers=wait)
    if isinstance(found, Broken):
        return failure(503, str(found))
    if isinstance(found, Unknown):
        return json_response(what_is_wrong(found, code="model_not_found"), 404)
    if isinstance(found, WeightsError):
        return json_response(why_it_ended(found), 500, _REPEATS)
    return json_response(why_it_ended(found), 400)


def why_it_ended(found: GPT2CLIError) -> dict[str, Any]:
    """The object for a failure: the server's if its model is broken, else the request's own."""
    if isinstance(found, Broken | WeightsError):
        return what_is_wrong(found, kind="server_error")
    return what_is_wrong(found)


def response_of(method: str, path: str, found: HTTPException) -> Response:
    """The response to a request that found no endpoint."""
    reason = _REASONS.get(found.status_code) or HTTPStatus(found.status_code).phrase
    message = reason.format(method=method, path=path)
    return failure(found.status_code, message, headers=found.headers)
