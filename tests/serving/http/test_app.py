"""What a server answers where, and how it refuses."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import servers
from helpers import BARD_SIZE
from prometheus_client.parser import text_string_to_metric_families
from servers import Answer

from gpt2cli import api
from gpt2cli.api import LoadedModel
from gpt2cli.serving.completions import KNOWN
from gpt2cli.serving.http.server import Server
from gpt2cli.serving.http.service import Service

BEYOND = BARD_SIZE.vocab_size  # the first id that is none
IDS = f"from 0 to {BEYOND - 1}"


def test_the_model_is_listed_and_found_by_its_name(ask: Any, bard: LoadedModel) -> None:
    listed = ask("/v1/models").json
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("bard", "model", "gpt2cli")
    assert model["max_model_len"] == bard.config.context_length
    assert ask("/v1/models/bard").json == model
    other = ask("/v1/models/gpt-4")
    assert (other.status, other.json["error"]["code"]) == (404, "model_not_found")
    assert "'gpt-4' is not served here, but bard" in other.error


def test_every_alias_of_the_model_is_its_name() -> None:
    service = Service(api.load("124M", fetch=False))
    assert service.names[0] == "124M"
    assert {"124M", "gpt2", "openai-community/gpt2"} <= set(service.names)
    for name in service.names:
        service.check_name(name)
    assert service.describe()["aliases"] == service.names[1:]


def test_another_model_than_the_one_that_is_served_is_never_read(complete: Any) -> None:
    found = complete(prompt="a", model="124M")
    assert (found.status, found.json["error"]["code"]) == (404, "model_not_found")
    assert found.json["error"]["param"] == "model"
    assert complete(prompt="a", model="bard", max_tokens=1).json["model"] == "bard"
    assert complete(prompt="a", model="", max_tokens=1).status == 200
    assert complete(prompt="a", model=None, max_tokens=1).status == 200


@pytest.mark.parametrize("text", ["ROMEO: naïve 漢字", "", "<|endoftext|>a"])
def test_texts_and_tokens_are_turned_into_each_other(
    ask: Any, bard: LoadedModel, text: str
) -> None:
    found = ask("/tokenize", {"prompt": text, "model": "bard"}).json
    assert found["tokens"] == bard.tokenizer.encode(text)
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == BARD_SIZE.context_length
    assert ask("/detokenize", {"tokens": found["tokens"]}).json == {"prompt": text}


def test_the_special_tokens_are_told(ask: Any) -> None:
    found = ask("/tokenizer_info").json
    assert found["eos_token"] == found["bos_token"] == "<|endoftext|>"
    assert found["vocab_size"] == BARD_SIZE.vocab_size
    assert found["model_max_length"] == BARD_SIZE.context_length


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/tokenize", {}, "prompt must be text"),
        ("/tokenize", {"prompt": 5}, "prompt must be text"),
        ("/tokenize", {"prompt": "a", "special": True}, "unknown field 'special'"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "must be true or false"),
        ("/tokenize", {"prompt": "a", "model": 5}, "model must be text"),
        ("/detokenize", {}, "tokens must be a list"),
        ("/detokenize", {"tokens": ["a"]}, "tokens must be a list"),
        ("/detokenize", {"tokens": [-1]}, "tokens must be a list"),
        ("/detokenize", {"tokens": [True]}, "tokens must be a list"),
        ("/detokenize", {"tokens": [BARD_SIZE.vocab_size]}, str(BARD_SIZE.vocab_size - 1)),
        ("/detokenize", {"tokens": [10**30]}, str(BARD_SIZE.vocab_size - 1)),
        ("/v1/chat/completions", {"messages": []}, "knows no chat"),
    ],
)
def test_a_wrong_question_is_answered_with_a_reason(
    ask: Any, path: str, body: Any, reason: str
) -> None:
    found = ask(path, body)
    assert (found.status, found.json["error"]["type"]) == (400, "invalid_request_error")
    assert reason in found.error


WRONG = [
    ({"temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'", None),
    ({"messages": []}, "knows no chat", None),
    ({"suffix": "x"}, "cannot insert", "suffix"),
    ({"n": 0}, "n must be a whole number from 1", "n"),
    ({"n": 129}, "up to 128 texts, not 129", "n"),
    ({"prompt": ["a"] * 129}, "up to 128 texts, not 129", "n"),
    ({"best_of": 3, "n": 4}, "best_of must be at least n", "best_of"),
    ({"best_of": 3, "stream": True}, "best_of and stream", "best_of"),
    ({"logprobs": 101}, "between 0 and 100", "logprobs"),
    ({"max_tokens": -1}, "max_tokens must be at least 1", "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens", "max_tokens"),
    ({"max_tokens": True}, "max_tokens", "max_tokens"),
    ({"temperature": -1}, "temperature", "temperature"),
    ({"temperature": "hot"}, "temperature must be a number", "temperature"),
    ({"top_p": 0}, "top_p", "top_p"),
    ({"top_p": 1.1}, "top_p", "top_p"),
    ({"top_k": -2}, "top_k", "top_k"),
    ({"frequency_penalty": 2.1}, "frequency_penalty", "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty", "presence_penalty"),
    ({"logit_bias": {str(BEYOND): 1}}, IDS, "logit_bias"),
    ({"stop_token_ids": [BEYOND]}, IDS, "stop_token_ids"),
    ({"stop": ""}, "stop string must not be empty", "stop"),
    ({"stop": [5]}, "stop", "stop"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "min_tokens"),
    ({"seed": "a"}, "seed must be a number", "seed"),
    ({"prompt": [BEYOND]}, IDS, None),
    ({"prompt": [-1]}, IDS, None),
    ({"regex": "("}, "unclosed group", "regex"),
    ({"regex": "a", "choice": ["a"]}, "regex and choice cannot go together", "regex"),
    ({"regex": "a", "stop": "b"}, "a constraint and stop cannot go together", "stop"),
    ({"json_schema": {"type": "nothing"}}, "json_schema: Invalid type", "json_schema"),
    ({"grammar": "no grammar"}, "grammar: ", "grammar"),
    ({"stream_options": {"include_usage": True}}, "need stream", "stream_options"),
]


@pytest.mark.parametrize(("change", "reason", "param"), WRONG)
def test_a_request_that_cannot_be_served_names_its_field(
    complete: Any, change: dict[str, Any], reason: str, param: str | None
) -> None:
    found = complete(**({"prompt": "a"} | change))
    assert (found.status, found.json["error"]["type"]) == (400, "invalid_request_error")
    assert reason in found.error
    if param is not None:
        assert found.json["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"prompt": NaN}', "not JSON"),
        (b'{"temperature": 1e999}', "not JSON"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "JSON"),
    ],
)
def test_a_body_that_is_no_object_of_json_is_refused(ask: Any, body: bytes, reason: str) -> None:
    found = ask("/v1/completions", body)
    assert found.status == 400
    assert reason in found.error


def test_what_is_not_there_says_where_completions_are(ask: Any) -> None:
    for path in ("/v1", "/v1/embeddings", "/v1/completions/"):
        found = ask(path)
        assert (found.status, found.error.endswith("POST /v1/completions")) == (404, True)
    found = ask("/v1/completions")
    assert (found.status, found.error) == (405, "GET is not possible at /v1/completions")
    assert found.headers["allow"] == "POST"
    assert ask("/health", {}).status == 405


def test_all_the_context_can_be_used_and_no_more(complete: Any) -> None:
    T = BARD_SIZE.context_length
    ids = [5] * (T - 1)
    whole = complete(prompt=ids, max_tokens=1).json
    assert whole["usage"] == {"prompt_tokens": T - 1, "completion_tokens": 1, "total_tokens": T}
    # Without max_tokens there are as many as fit.
    assert complete(prompt=ids[:-4], ignore_eos=True).json["usage"]["completion_tokens"] == 5
    for body in ({"prompt": ids, "max_tokens": 2}, {"prompt": [5] * T}, {"prompt": [5] * (T + 44)}):
        found = complete(**body)
        assert (found.status, found.json["error"]["code"]) == (400, "context_length_exceeded")
        assert f"context of {T}" in found.error
    slid = complete(prompt=[5] * (T + 44), max_tokens=9, overflow="slide", ignore_eos=True).json
    assert slid["usage"]["completion_tokens"] == 9


def test_a_large_body_is_read_however_it_comes(ask: Any) -> None:
    body = b'{"prompt": "a", "max_tokens": 1, "user": "%s"}' % (b"x" * 150_000)
    assert [ask("/v1/completions", body).status for _ in range(10)] == [200] * 10


def test_a_server_says_that_it_is_not_ready_until_it_is(bard: LoadedModel) -> None:
    gate = threading.Event()

    def fetch() -> None:
        gate.wait(60)

    with servers.here(bard, fetch=fetch) as (port, server):
        servers.until(lambda: server.started)
        try:
            for path in ("/health", "/v1/models", "/tokenizer_info", "/openapi.json"):
                assert servers.ask(port, path).status == 503
            for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": []})):
                assert servers.ask(port, path, body).status == 503
            found = servers.ask(port, "/v1/completions", {"prompt": "a"})
            assert (found.status, found.headers["retry-after"]) == (503, "1")
            assert found.json["error"]["type"] == "server_error"
        finally:
            gate.set()
        servers.until(lambda: servers.ask(port, "/health").status == 200)
        assert servers.ask(port, "/health").json == {"status": "ok"}
        assert servers.ask(port, "/v1/completions", {"prompt": "a"}).status == 200


def test_a_model_that_cannot_be_opened_ends_the_server(bard: LoadedModel) -> None:
    def fail() -> None:
        raise OSError("no disk")

    with servers.here(bard, fetch=fail) as (_, server):
        servers.until(lambda: server.failure is not None and server.should_exit)
        assert "no disk" in str(server.failure)


def test_every_answer_has_an_id_that_the_client_may_choose(ask: Any) -> None:
    assert len(ask("/health").headers["x-request-id"]) == 32
    own = ask("/health", headers={"X-Request-Id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    long = ask("/none", headers={"X-Request-Id": "x" * 129})
    assert len(long.headers["x-request-id"]) == 32


def metric(found: Answer, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(found.body.decode()):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return float(one.value)
    raise AssertionError(f"there is no {name} with {labels}")


def test_metrics_count_requests_tokens_and_room(bard: LoadedModel) -> None:
    with servers.here(bard, max_sequences=2) as (port, _):
        body = {"prompt": "ROMEO:", "max_tokens": 5, "n": 2, "ignore_eos": True}
        servers.ask(port, "/v1/completions", body)
        servers.ask(port, "/v1/completions", body | {"stream": True})
        servers.ask(port, "/v1/completions", {"prompt": 5})
        servers.ask(port, "/nowhere")
        found = servers.ask(port, "/metrics")
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        for path, status, count in (
            ("/v1/completions", "200", 2),
            ("/v1/completions", "400", 1),
            ("other", "404", 1),
        ):
            assert metric(found, "gpt2_requests_total", path=path, status=status) == count
        assert metric(found, "gpt2_prompt_tokens_total") == 2 * len(bard.encode("ROMEO:"))
        assert metric(found, "gpt2_completion_tokens_total") == 20
        for name in ("time_to_first_token", "time_per_token", "request"):
            assert metric(found, f"gpt2_{name}_seconds_count") == 2
        assert metric(found, "gpt2_running_texts") == metric(found, "gpt2_waiting_texts") == 0
        pages = metric(found, "gpt2_kv_cache_pages")
        assert pages == metric(found, "gpt2_kv_cache_free_pages") > 0
        with servers.begun(
            port, prompt="a", n=3, max_tokens=5000, overflow="slide", ignore_eos=True
        ):
            servers.until(lambda: metric(servers.ask(port, "/metrics"), "gpt2_running_texts") == 2)
            found = servers.ask(port, "/metrics")
            assert metric(found, "gpt2_waiting_texts") == 1
            assert metric(found, "gpt2_kv_cache_free_pages") < pages


def test_the_description_has_the_fields_that_are_read(served: tuple[int, Server]) -> None:
    document = servers.ask(served[0], "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    [media] = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"].values()
    assert set(media["schema"]["properties"]) == set(KNOWN)
    assert media["schema"]["properties"]["model"]["anyOf"][0]["enum"] == ["bard"]
