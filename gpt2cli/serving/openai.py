"""OpenAI's batch lines for `/v1/completions`: requests in, and results as its libraries read them.

The format is that of platform.openai.com/docs/api-reference/batch; `completions` has that of what
the lines hold. Names and times are not drawn anew: the same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpt2cli.errors import UsageError, shown
from gpt2cli.serving import completions
from gpt2cli.serving.completions import URL, Request


def is_request(line: Mapping[str, Any] | None) -> bool:
    """Whether a line is one of a batch."""
    return line is not None and "custom_id" in line and "body" in line


def read(line: Mapping[str, Any], given: Collection[str]) -> Request:
    """The request of a line; the settings in `given` have no default of OpenAI's.

    Raises `UsageError` for what is no completion, or none that this program can make.
    """
    method, url, body = (line.get(name) for name in ("method", "url", "body"))
    if not isinstance(line.get("custom_id"), str):
        raise UsageError("custom_id must be text")
    if method != "POST":
        raise UsageError(f"method must be POST, not {shown(method)}")
    if url != URL:
        chat = ", for a GPT-2 continues texts and knows no chat" if "chat" in str(url) else ""
        raise UsageError(f"url must be {URL}, not {shown(url)}{chat}")
    if not isinstance(body, dict):
        raise UsageError(f"body must be an object, not {shown(body)}")
    if "prompt" not in body:
        raise UsageError("body has no prompt")
    request = completions.read(body, given)
    if len(request.prompts) > 1:
        raise UsageError(f"prompt holds {len(request.prompts)} prompts; give each its own line")
    if request.is_streaming:
        raise UsageError("stream is not possible in a file of results")
    return request


def result(index: int, custom_id: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a request that succeeded."""
    return _line(index, custom_id, 200, body, None)


def failure(index: int, custom_id: Any, message: str) -> dict[str, Any]:
    """The line of a request that failed."""
    body = completions.error(message, "invalid_request_error")
    reason = {"code": "invalid_request", "message": message}
    return _line(index, custom_id, 400, body, reason)


def _line(
    index: int, custom_id: Any, status: int, body: Mapping[str, Any], error: Any
) -> dict[str, Any]:
    return {
        "id": f"batch_req_{index}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{index}", "body": body},
        "error": error,
    }
