"""What all endpoints of an open model have in common: a response for each way to be wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from gpt2cli.errors import GPT2CLIError
from gpt2cli.serving.http import guard
from gpt2cli.serving.http.errors import failure, response_to
from gpt2cli.serving.http.service import Service

PAGE = "/page/v1/"  # what the page asks is found below it
Endpoint: TypeAlias = "Callable[[Request], Awaitable[Any]]"


def opened(service: Service, endpoint: Endpoint) -> Endpoint:
    """The endpoint, once the model is open; what it raises becomes a response.

    Of a POST the body is still to be read, by `guard.read_body`.
    """

    async def respond(request: Request) -> Any:
        if service.engine is None:
            return not_ready()
        if request.method == "POST" and (refusal := guard.refuse_body(request.headers)):
            return refusal
        try:
            return await endpoint(request)
        except guard.TooLarge:
            return guard.too_large()
        except guard.TooSlow:
            message = "the body has not come in time"
            return failure(408, message, headers={"connection": "close"})
        except guard.Gone:
            return Response(status_code=499)
        except GPT2CLIError as error:
            return response_to(error)

    return respond


def not_ready() -> Response:
    """The response before the model is open."""
    return failure(503, "the model is being opened", headers={"retry-after": "1"})
