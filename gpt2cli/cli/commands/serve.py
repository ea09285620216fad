"""`gpt2 serve`: completions over HTTP."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.terminal import complain, log
from gpt2cli.cli.listening import check_library, hosts, say_where, server
from gpt2cli.errors import UsageError
from gpt2cli.files import read_file

if TYPE_CHECKING:
    from socket import socket

    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.http.address import Address
    from gpt2cli.serving.http.settings import Options


@dataclass(frozen=True)
class Listening(Group):
    """Address"""

    host: Annotated[
        str, options.setting("--host", metavar="NAME", help="Address of this machine to listen at.")
    ] = "127.0.0.1"
    port: Annotated[
        int,
        options.setting(
            "--port", metavar="N", min=0, max=65535, help="Port; 0 for any that is free."
        ),
    ] = 8000
    uds: Annotated[
        Path | None,
        typer.Option("--uds", metavar="PATH", help="A Unix socket in place of host and port."),
    ] = None


@dataclass(frozen=True)
class Access(Group):
    """Access"""

    api_key: Annotated[
        str | None,
        options.setting(
            "--api-key",
            metavar="KEY",
            help="Answer only those who send this key; better in a file or in GPT2_API_KEY.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="Read the key from a file."),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let everyone who can reach the host ask.")
    ] = False
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="URL",
            help="Let pages of this site ask, too. May be given several times.",
        ),
    ] = None

    def key(self) -> str | None:
        """The key, if there is one. Raises `UsageError` for two, and for none in its file."""
        if self.api_key_file is None:
            if self.api_key == "":
                raise UsageError("api_key is empty", "api_key")
            return self.api_key
        if "api_key" in self.typed:
            raise UsageError("there are two keys; leave out api_key or api_key_file", "api_key")
        key = read_file(self.api_key_file).strip()
        if not key:
            raise UsageError(f"{self.api_key_file} holds no key")
        return key


@dataclass(frozen=True)
class Load(Group):
    """Model and machine"""

    max_sequences: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Texts written at once, at most.")
    ] = None
    queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Texts that may wait; more are refused.")
    ] = 256
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that share the cores.")
    ] = 1


@dataclass(frozen=True)
class Messages(options.Common):
    """Messages"""

    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write the line of each request as JSON.")
    ] = False


@grouped
def serve(
    *,
    where: options.Where,
    load: Load,
    listening: Listening,
    access: Access,
    messages: Messages,
) -> None:
    """Serve completions over HTTP, as OpenAI's clients ask for them.

    POST /v1/completions continues texts, many side by side; a text is what gpt2 generate writes
    with the same seed. There are also /v1/models, /tokenize, /health, /metrics and /openapi.json,
    and the page of gpt2 play at /.
    Ctrl-C lets the requests that are being answered end.

    \b
    Examples:
      gpt2 serve --model bard
      gpt2 serve -m 124M --adapter tuned --precision int8 --port 8080
      GPT2_API_KEY=secret gpt2 serve --host 0.0.0.0
      gpt2 serve --uds /run/gpt2.sock --workers 4
    """
    address = _address(listening, access)
    chosen = _options(access, load, messages, address)
    check_library()
    model = opening.load(where)
    with address.bind() as listener:
        try:
            _serve(model, address, listener, chosen)
        finally:
            address.release()


def _address(listening: Listening, access: Access) -> Address:
    from gpt2cli.serving.http.address import Address

    if listening.uds is not None and {"host", "port"} & listening.typed:
        raise UsageError("uds takes the place of host and port; leave them out", "uds")
    address = Address(listening.host, listening.port, listening.uds)
    if not (address.is_local or access.insecure or access.key()):
        raise UsageError(
            f"{listening.host} can be reached from elsewhere, so api_key is needed: set "
            "GPT2_API_KEY, or add insecure to let everyone ask",
            "api_key",
            "insecure",
        )
    return address


def _options(access: Access, load: Load, messages: Messages, address: Address) -> Options:
    from gpt2cli.serving.http.settings import Options, Policy

    for origin in access.cors_origin or ():
        if origin != "*" and not origin.startswith(("http://", "https://")):
            raise UsageError(
                f"cors_origin must be like https://example.com, not {origin!r}", "cors_origin"
            )
    return Options(
        policy=Policy(access.key(), hosts(address)),
        origins=tuple(o.rstrip("/") for o in access.cors_origin or ()),
        max_sequences=load.max_sequences,
        queue=load.queue,
        workers=load.workers,
        quiet=messages.quiet,
        log_json=messages.log_json,
    )


def _serve(model: LoadedModel, address: Address, listener: socket, chosen: Options) -> None:
    url = address.url(listener)

    def ready() -> None:
        if not chosen.quiet:
            say_where(model, url)
            complain(f"try: {_example(model, address, url, bool(chosen.policy.key))}")

    if chosen.workers == 1:
        server(model, chosen, ready).run([listener])
        return
    from gpt2cli.serving.http import workers as several

    opening.fetch(model)
    several.serve(model, listener, chosen, ready=ready, tell=log)


def _example(model: LoadedModel, address: Address, url: str, has_key: bool) -> str:
    """A command that asks for a completion."""
    words: list[Any] = ["curl"]
    if address.uds is not None:
        words += ["--unix-socket", address.uds, "http://localhost/v1/completions"]
    else:
        words += [f"{url}/v1/completions"]
    body = '{"prompt": "Once upon a time", "max_tokens": 50}'
    words += ["-H", "Content-Type: application/json", "-d", body]
    line = shlex.join(map(str, words))
    return line + (' -H "Authorization: Bearer $GPT2_API_KEY"' if has_key else "")
