"""Who may ask what of a server."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import servers

from gpt2cli.api import LoadedModel
from gpt2cli.serving.http.settings import LOCAL, Policy

KEY = "säcret key"
PATHS = ("/v1/models", "/v1/models/bard", "/metrics", "/openapi.json", "/tokenizer_info", "/none")
ORIGIN = "https://example.com"


@pytest.fixture(scope="module")
def locked(bard: LoadedModel) -> Iterator[int]:
    """The port of a server that wants a key."""
    with servers.here(bard, policy=Policy(key="secret")) as (port, _):
        yield port


@pytest.fixture(scope="module")
def local(bard: LoadedModel) -> Iterator[int]:
    """The port of a server that answers as this machine alone, and to the pages of one site."""
    with servers.here(bard, policy=Policy(hosts=LOCAL), origins=(ORIGIN,)) as (port, _):
        yield port


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_the_key_covers_everything_but_health(locked: int) -> None:
    assert servers.ask(locked, "/health").status == 200
    asked = [(path, None) for path in PATHS]
    for path, body in [*asked, ("/v1/completions", {}), ("/tokenize", {}), ("/detokenize", {})]:
        found = servers.ask(locked, path, body)
        assert (found.status, found.json["error"]["code"]) == (401, "invalid_api_key")
        assert found.json["error"]["type"] == "authentication_error"
        assert found.headers["www-authenticate"] == "Bearer"
        assert "a key is needed" in found.error
    assert servers.ask(locked, "/v1/models", headers=bearer("secret")).status == 200
    body = {"prompt": "a", "max_tokens": 1}
    assert servers.ask(locked, "/v1/completions", body, headers=bearer("secret")).status == 200
    lower = {"authorization": "bearer secret"}
    assert servers.ask(locked, "/v1/models", headers=lower).status == 200


@pytest.mark.parametrize(
    "header",
    ["Bearer secre", "Bearer secrets", "Bearer Secret", "Basic secret", "secret", "Bearer"],
)
def test_another_key_is_refused(locked: int, header: str) -> None:
    found = servers.ask(locked, "/v1/models", headers={"Authorization": header})
    assert found.status == 401
    assert "secret" not in found.error


def test_a_key_may_have_any_characters(bard: LoadedModel) -> None:
    with servers.here(bard, policy=Policy(key=KEY)) as (port, _):
        for key, status in ((KEY, 200), ("sacret key", 401)):
            headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
            assert servers.ask(port, "/v1/models", headers=headers).status == status


def test_the_description_says_that_a_key_is_needed(locked: int, ask: Any) -> None:
    document = servers.ask(locked, "/openapi.json", headers=bearer("secret")).json
    assert document["paths"]["/v1/completions"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "components" not in ask("/openapi.json").json


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:80", "LOCALHOST:8000", "[::1]", "[::1]:5"]
)
def test_this_machine_may_be_named_in_all_its_ways(local: int, host: str) -> None:
    assert servers.ask(local, "/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "::2"]
)
def test_a_page_with_a_name_that_points_here_is_refused(local: int, host: str) -> None:
    for path, body in (("/health", None), ("/v1/completions", {"prompt": "a"})):
        found = servers.ask(local, path, body, headers={"Host": host})
        assert (found.status, found.json["error"]["type"]) == (403, "permission_error")


def preflight(port: int, origin: str) -> servers.Answer:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return servers.ask(port, "/v1/completions", method="OPTIONS", headers=headers)


def test_pages_may_ask_only_if_their_site_is_named(local: int, ask: Any, served: Any) -> None:
    found = preflight(local, ORIGIN)
    assert found.status == 200
    assert found.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in found.headers["access-control-allow-methods"]
    body = {"prompt": "a", "max_tokens": 1}
    found = servers.ask(local, "/v1/completions", body, headers={"Origin": ORIGIN})
    assert (found.status, found.headers["access-control-allow-origin"]) == (200, ORIGIN)
    other = preflight(local, "https://evil.example")
    assert "access-control-allow-origin" not in other.headers
    closed = preflight(served[0], ORIGIN)
    assert closed.status >= 400
    assert "access-control-allow-origin" not in closed.headers
    found = ask("/v1/models", headers={"Origin": ORIGIN})
    assert not any(name.startswith("access-control") for name in found.headers)


def test_a_refusal_can_be_read_by_pages_that_may_ask(bard: LoadedModel) -> None:
    policy = Policy(key="secret")
    with servers.here(bard, policy=policy, origins=(ORIGIN,)) as (port, _):
        found = servers.ask(port, "/v1/models", headers={"Origin": ORIGIN})
        assert (found.status, found.headers["access-control-allow-origin"]) == (401, ORIGIN)
        assert preflight(port, ORIGIN).status == 200  # browsers send no key with it


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp", "json"]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_a_form_of_a_page_is_no_request(ask: Any, path: str, kind: str) -> None:
    found = ask(path, b'{"prompt": "a"}', headers={"Content-Type": kind})
    assert found.status == 415
    assert "Content-Type: application/json" in found.error


def test_json_may_say_its_characters(ask: Any) -> None:
    headers = {"Content-Type": "Application/JSON ; charset=utf-8"}
    assert ask("/tokenize", b'{"prompt": "a"}', headers=headers).status == 200


def test_a_body_that_says_it_is_too_large_is_not_awaited(served: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=60)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str((8 << 20) + 1))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, response.headers["connection"]) == (413, "close")
    assert "up to 8 MB" in json.loads(response.read())["error"]["message"]
    connection.close()


def test_a_body_that_turns_out_to_be_too_large_is_read_no_further(served: Any) -> None:
    with socket.create_connection(("127.0.0.1", served[0]), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range((8 << 20) // 0x10000):
            connection.sendall(chunk)
        connection.sendall(b"1\r\n \r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_as_much_as_is_allowed_is_read(ask: Any) -> None:
    begin, end = b'{"prompt": "a", "max_tokens": 1, "user": "', b'"}'
    size = (8 << 20) - len(begin) - len(end)
    assert ask("/v1/completions", begin + b"x" * size + end).status == 200
