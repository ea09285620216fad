"""What a server makes of wrong requests, and of those who mean it ill."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from helpers import BARD_SIZE
from servers import URL, Asking, ask

from gpt2cli.serving.completions import KNOWN

BODIES: dict[str, tuple[bytes, int]] = {
    "no UTF-8": (b'{"prompt": "\xff"}', 400),
    "half a character": (b'{"prompt": "\xe2\x82', 400),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), 400),
    "nothing": (b"", 400),
    "a list": (b"[]", 400),
    "100,000 brackets": (b'{"prompt": ' + b"[" * 100_000, 400),
    "100,000 objects": (b'{"a":' * 100_000, 400),
    "a schema of 5,000 levels": (
        b'{"json_schema": ' + b'{"not":' * 5_000 + b"{}" + b"}" * 5_001,
        400,
    ),
    "too large a number": (b'{"temperature": 1e400}', 400),
    "NaN": (b'{"temperature": NaN}', 400),
    "infinity": (b'{"temperature": -Infinity}', 400),
    "a number of 100,000 digits": (b'{"seed": ' + b"9" * 100_000 + b"}", 400),
    "a seed of 4,000 digits": (b'{"seed": ' + b"9" * 4_000 + b"}", 400),
    "an id of 300 digits": (b'{"prompt": [1e300]}', 400),
    "a negative id": (b'{"prompt": [-1]}', 400),
    "an id beyond the vocabulary": (b'{"prompt": [%d]}' % BARD_SIZE.vocab_size, 400),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400),
    "a lone surrogate in stop": (b'{"prompt": "a", "stop": "\\ud800", "max_tokens": 1}', 200),
    "a lone surrogate in a name": (b'{"\\ud800": 1}', 400),
    "a lone surrogate in model": (b'{"model": "\\ud800"}', 404),
    "a lone surrogate in regex": (b'{"regex": "\\ud800"}', 400),
    "a lone surrogate in choice": (b'{"choice": ["\\ud800"]}', 400),
    "NUL": (b'{"prompt": "\\u0000", "max_tokens": 1}', 200),
    "a name twice": (b'{"max_tokens": "no", "max_tokens": 1}', 200),
    "10,000 stops": (json.dumps({"stop": ["x"] * 10_000}).encode(), 400),
    "a stop of 1 MB": (json.dumps({"stop": "x" * 1_000_000}).encode(), 400),
    "a bias of ids that are none": (
        json.dumps({"logit_bias": {str(i): 1 for i in range(100_000)}}).encode(),
        400,
    ),
    "a bias of everything": (
        json.dumps(
            {
                "logit_bias": {str(i): 1e30 for i in range(BARD_SIZE.vocab_size)},
                "max_tokens": 1,
            }
        ).encode(),
        200,
    ),
    "a prompt of 1 MB": (json.dumps({"prompt": "word " * 200_000}).encode(), 400),
    "129 prompts": (json.dumps({"prompt": ["a"] * 129}).encode(), 400),
    "a million prompts": (json.dumps({"prompt": ["a"] * 1_000_000}).encode(), 400),
    "a million ids": (json.dumps({"prompt": [1] * 1_000_000}).encode(), 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_answered_and_no_more(port: int, name: str) -> None:
    body, status = BODIES[name]
    answer = ask(port, URL, body)
    assert answer.status == status, answer.body[:500]
    if status != 200:
        assert 0 < len(answer.error) < 1000


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), [[]], {"a": {}}, True], ids=lambda v: str(v)[:5]
)
def test_no_field_takes_what_it_cannot_mean(port: int, value: Any) -> None:
    for name in KNOWN:
        if value is True and name in ("echo", "stream", "ignore_eos"):
            continue
        if value == {"a": {}} and name == "json_schema":
            continue
        answer = ask(port, URL, {"max_tokens": 1} | {name: value})
        assert answer.status == 400, name
        assert name in answer.error or answer.json["error"]["param"] == name


def test_a_number_without_a_fraction_is_a_whole_one(port: int) -> None:
    answer = ask(port, URL, b'{"prompt": [1.0, 2e0], "max_tokens": 2.0, "stop_token_ids": [0.0]}')
    assert (answer.status, answer.json["usage"]["prompt_tokens"]) == (200, 2)
    assert ask(port, "/detokenize", b'{"tokens": [1.0]}').status == 200


def test_a_field_without_a_name_is_unknown(port: int) -> None:
    assert ask(port, "/tokenize", {"prompt": "a", "": 1}).status == 400


def test_what_leaves_no_token_is_a_wrong_request(port: int) -> None:
    answer = ask(port, URL, {"prompt": "a", "repetition_penalty": 5e-324})
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/health", URL])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST", "GET"])
def test_another_method_is_not_possible_there(port: int, path: str, method: str) -> None:
    if (path, method) in ((URL, "POST"), ("/health", "GET")):
        return
    answer = ask(port, path, method=method)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == (
        {"POST"} if path == URL else {"HEAD", "GET"}
    )


def test_head_is_get_without_a_body(port: int) -> None:
    answer = ask(port, "/health", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


HOSTILE: dict[str, dict[str, Any]] = {
    "repetitions": {"regex": "(a{1,1000}){1,1000}"},
    "alternatives": {"regex": "|".join("a" * i + "b" for i in range(1, 1500))},
    "choices": {"choice": [f"{i} text here" for i in range(20_000)]},
    "an ambiguous grammar": {"grammar": 'start: a\na: a a | "x" | "xx" | "xxx"'},
    "many properties": {
        "json_schema": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "maxLength": 1000} for i in range(1500)},
        }
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_holds_nobody_up(port: int, name: str) -> None:
    hostile, waits = Asking(port, max_tokens=20, ignore_eos=False, **HOSTILE[name]), []
    while hostile.is_alive():
        begun = time.monotonic()
        assert ask(port, URL, {"prompt": "O,", "max_tokens": 1}).status == 200
        waits.append(time.monotonic() - begun)
    assert hostile.result().status in (200, 400)
    assert max(waits) < 2
