"""The endpoints of a server, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan

from gpt2cli.errors import UsageError
from gpt2cli.serving.completions import URL
from gpt2cli.serving.http import guard, insight, page, writing
from gpt2cli.serving.http.answers import Stream, Whole
from gpt2cli.serving.http.endpoint import not_ready, opened
from gpt2cli.serving.http.errors import failure, json_response, response_of
from gpt2cli.serving.http.guard import Guard, Log
from gpt2cli.serving.http.openapi import document
from gpt2cli.serving.http.service import Service, only, parse
from gpt2cli.serving.http.settings import Options, Policy

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel

_LARGE = 1 << 14  # bytes of a body that are not worth a thread
NO_CHAT = f"a GPT-2 knows no chat: it continues texts; send a prompt to POST {URL}"


def application(
    service: Service,
    policy: Policy,
    *,
    origins: Sequence[str] = (),
    log: Callable[[str], object] = lambda _: None,
    log_json: bool = False,
    lifespan: Lifespan[Starlette] | None = None,
) -> ASGIApp:
    """The server of a service. Pages from `origins` may use it, and `log` takes its lines."""
    routes = _Endpoints(service, policy).routes()
    starlette = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _no_endpoint, Exception: _bug},
        lifespan=lifespan,
    )
    starlette.router.redirect_slashes = False  # an error says more than a redirection
    app: ASGIApp = Guard(starlette, policy)
    if origins:
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return Log(app, service.metrics, {route.path for route in routes}, log, as_json=log_json)


def asgi(
    model: LoadedModel,
    options: Options | None = None,
    *,
    log: Callable[[str], object] = lambda _: None,
    broken: Callable[[], None] = lambda: None,
) -> ASGIApp:
    """The same for any ASGI server: it opens the model when that starts, and stops when it ends.

    `broken` is called when the engine has failed; from then on /health and requests get a 503.
    """
    options = options or Options()
    service = Service(
        model,
        max_sequences=options.max_sequences,
        queue=options.queue,
        processes=options.workers,
        broken=broken,
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine = await asyncio.to_thread(service.open)
        engine.start()
        service.engine = engine
        yield
        await asyncio.to_thread(engine.stop)

    return application(
        service,
        options.policy,
        origins=options.origins,
        log=(lambda _: None) if options.quiet else log,
        log_json=options.log_json,
        lifespan=lifespan,
    )


class _Endpoints:
    def __init__(self, service: Service, policy: Policy) -> None:
        self._service, self._policy = service, policy

    def routes(self) -> list[Route]:
        """What is found where."""
        service = self._service
        return [
            Route(URL, opened(service, self.completions), methods=["POST"]),
            Route("/v1/chat/completions", opened(service, self.chat), methods=["POST"]),
            Route("/v1/models", opened(service, self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", opened(service, self.model), methods=["GET"]),
            Route("/tokenize", opened(service, self.tokenize), methods=["POST"]),
            Route("/detokenize", opened(service, self.detokenize), methods=["POST"]),
            Route("/tokenizer_info", opened(service, self.tokenizer_info), methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", opened(service, self.openapi), methods=["GET"]),
            *writing.routes(service),
            *insight.routes(service),
            *page.routes(),
        ]

    async def completions(self, request: Request) -> Any:
        """Continue prompts."""
        body = await guard.read_body(request.receive)
        service, engine = self._service, self._service.engine
        assert engine is not None  # or `_open` would not have let it through
        engine.check_room()
        # What takes long, such as a grammar, must not hold up the other requests.
        is_short = len(body) < _LARGE and not any(
            name in body for name in (b"regex", b"json_schema", b"choice", b"grammar")
        )
        prepare = service.prepare
        work = prepare(body, engine) if is_short else await asyncio.to_thread(prepare, body, engine)
        job = engine.submit([part.samples for part in work.parts])
        return (Stream if work.request.is_streaming else Whole)(service, work, job)

    async def chat(self, request: Request) -> Response:
        """Say why there is none."""
        return failure(400, NO_CHAT)

    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        return json_response({"object": "list", "data": [self._service.describe()]})

    async def model(self, request: Request) -> Response:
        """The same by one of its names."""
        self._service.check_name(request.path_params["name"])
        return json_response(self._service.describe())

    async def tokenize(self, request: Request) -> Response:
        """A text in tokens, as vLLM answers it."""
        body = parse(await guard.read_body(request.receive))
        only(body, "model", "prompt", "add_special_tokens")
        self._check_model(body)
        text = body.get("prompt")
        if not isinstance(text, str):
            raise UsageError("prompt must be text", "prompt")
        if not isinstance(body.get("add_special_tokens", False), bool):
            raise UsageError("add_special_tokens must be true or false")
        ids = await asyncio.to_thread(self._service.model.tokenizer.encode, text)
        length = self._service.model.config.context_length
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": length})

    async def detokenize(self, request: Request) -> Response:
        """The text of some tokens, as vLLM answers it."""
        body = parse(await guard.read_body(request.receive))
        only(body, "model", "tokens")
        self._check_model(body)
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise UsageError("tokens must be a list of token ids", "tokens")
        return json_response({"prompt": self._service.model.tokenizer.decode(ids)})

    async def tokenizer_info(self, request: Request) -> Response:
        """The special tokens, as lm-evaluation-harness asks for them."""
        tokenizer = self._service.model.tokenizer
        end = tokenizer.end_of_text
        name = None if end is None else tokenizer.decode([end])
        return json_response(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "vocab_size": tokenizer.size,
                "model_max_length": self._service.model.config.context_length,
                "bos_token": name,
                "eos_token": name,
                "unk_token": name,
                "pad_token": None,
                "chat_template": None,
            }
        )

    async def health(self, request: Request) -> Response:
        """Whether requests are served."""
        engine = self._service.engine
        if engine is None:
            return not_ready()
        if engine.error is not None:
            return failure(503, "the engine has failed")
        return json_response({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """What was counted."""
        metrics = self._service.metrics
        headers = {"content-type": metrics.content_type}
        return Response(metrics.show(self._service.engine), headers=headers)

    async def openapi(self, request: Request) -> Response:
        """What can be asked, for programs."""
        return json_response(document(self._service, has_key=self._policy.key is not None))

    def _check_model(self, body: dict[str, Any]) -> None:
        name = body.get("model")
        if not isinstance(name, str | None):
            raise UsageError("model must be text", "model")
        if name is not None:
            self._service.check_name(name)


async def _no_endpoint(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return response_of(request.method, request.url.path, error)


async def _bug(request: Request, error: Exception) -> Response:
    headers = {"x-should-retry": "false"}
    return failure(500, f"internal error: {type(error).__name__}", headers=headers)
