"""The page's endpoints to write with, asked of a running server."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import servers
from servers import Answer

import gpt2cli
from gpt2cli.api import LoadedModel
from gpt2cli.config.interventions import Interventions
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.decoders.pages import Chunk
from gpt2cli.generation import loop
from gpt2cli.sampling import constraint
from gpt2cli.serving.http import insight, writing
from gpt2cli.serving.http.server import Server
from gpt2cli.serving.http.settings import Policy

Ask = Callable[..., Answer]
PROMPT = "ROMEO: I will not be"


@pytest.fixture(scope="session")
def write(served: tuple[int, Server]) -> Ask:
    """Ask an endpoint of the page by its name and the fields of a body."""

    def request(name: str, **body: Any) -> Answer:
        return servers.ask(served[0], f"/page/v1/{name}", body)

    return request


def texts_of(answer: Answer) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """The tokens of each sample, and how the stream ended."""
    *steps, last = answer.chunks
    news = [one for step in steps for one in step["news"]]
    count = 1 + max(one["sample"] for one in news)
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for one in news:
        if one["token"] is not None:
            found[one["sample"]].append(one["token"])
    return found, last


def ids_of(tokens: list[dict[str, Any]]) -> list[int]:
    return [token["id"] for token in tokens]


def rank_of(token_id: int, logits: list[float]) -> int:
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    return order.index(token_id) + 1


def next_logits(model: LoadedModel, ids: list[int]) -> np.ndarray[Any, Any]:
    with model.batcher().alone() as decoder:
        place = decoder.open()
        row = np.array(decoder.read([Chunk(place, 0, ids, False)])[0], np.float64)
        decoder.close(place)
    return row


def test_the_model_says_what_the_page_needs(ask: Ask) -> None:
    found = ask("/page/v1/model").json
    assert found["name"] == "bard"
    assert found["config"] == {
        "vocab_size": 2048,
        "context_length": 512,
        "emb_dim": 256,
        "n_heads": 4,
        "n_layers": 4,
    }
    assert found["sampling"]["temperature"] == 0.8
    assert found["unchangeable"] is None
    assert found["limits"]["candidates"] == 1000
    assert found["facts"]["model"] == "bard"


def test_a_model_in_int8_says_why_it_cannot_be_changed() -> None:
    with servers.here(gpt2cli.load("bard", precision="int8")) as (port, _):
        reason = servers.ask(port, "/page/v1/model").json["unchangeable"]
        assert "int8" in reason
        body = {"prompt": "O", "plan": {"ablate": ["0.0"]}}
        refused = servers.ask(port, "/page/v1/continue", body)
        assert refused.status == 400
        assert refused.error == reason


def test_a_continuation_is_what_generate_writes(write: Ask, bard: LoadedModel) -> None:
    settings = {"max_tokens": 30, "seed": 7, "temperature": 0.9, "top_k": 50, "top_p": 0.9}
    tokens, last = texts_of(write("continue", prompt=PROMPT, n=3, top=2, **settings))
    expected = bard.generate(PROMPT, samples=3, logprobs=2, **settings)
    assert [ids_of(one) for one in tokens] == [sample.token_ids for sample in expected.samples]
    for found, sample in zip(tokens, expected.samples, strict=True):
        assert [t["logprob"] for t in found] == [t.logprob for t in sample.logprobs]
        assert [[o["id"] for o in t["top"]] for t in found] == [
            [o.id for o in t.top] for t in sample.logprobs
        ]
    assert last["done"] is True
    assert last["seed"] == 7
    assert last["facts"] == bard.facts()


def test_many_samples_at_once_are_those_written_alone(write: Ask) -> None:
    together, _ = texts_of(write("continue", prompt=PROMPT, n=8, max_tokens=12, seed=3))
    first, _ = texts_of(write("continue", prompt=PROMPT, n=1, max_tokens=12, seed=3))
    three, _ = texts_of(write("continue", prompt=PROMPT, n=3, max_tokens=12, seed=3))
    assert together[:1] == first
    assert together[:3] == three
    assert len({tuple(ids_of(one)) for one in together}) > 1


def test_a_continuation_without_a_seed_says_which_one_it_drew(write: Ask) -> None:
    tokens, last = texts_of(write("continue", prompt=PROMPT, max_tokens=8))
    again, _ = texts_of(write("continue", prompt=PROMPT, max_tokens=8, seed=last["seed"]))
    assert again == tokens


def test_null_switches_off_what_the_model_does_by_default(write: Ask, bard: LoadedModel) -> None:
    assert bard.sampling.top_p is not None
    off = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
    tokens, _ = texts_of(write("continue", prompt=PROMPT, max_tokens=20, seed=1, **off))
    config = bard.configure(max_tokens=20, seed=1, sampling=SamplingConfig())
    expected = [e.token_id for e in bard.batcher().stream(bard.ids(PROMPT), config)]
    assert ids_of(tokens[0]) == expected


def test_a_text_that_ends_says_why(write: Ask, bard: LoadedModel) -> None:
    [*_, step, _] = write("continue", prompt="ROMEO:", max_tokens=99, seed=1, stop=["e"]).chunks
    assert step["news"][-1]["finish_reason"] == "stop"
    chosen = {"prompt": "Yes or no? ", "choice": ["yes", "no"], "max_tokens": 9, "seed": 1}
    tokens, _ = texts_of(write("continue", **chosen))
    assert "".join(token["text"] for token in tokens[0]) in ("yes", "no")
    [*_, step, _] = write("continue", **chosen).chunks
    assert step["news"][-1]["finish_reason"] in ("stop", "eos")


def test_end_of_text_ends_a_text_without_a_token(write: Ask, bard: LoadedModel) -> None:
    end = bard.tokenizer.end_of_text
    [step, _] = write("continue", prompt="O", logit_bias={str(end): 100}).chunks
    assert step["news"] == [{"sample": 0, "token": None, "finish_reason": "eos"}]


def test_a_text_may_outgrow_the_context(write: Ask, bard: LoadedModel) -> None:
    ids = bard.encode("to be or not to be " * 200)[:600]
    tokens, _ = texts_of(write("continue", prompt=ids, max_tokens=3, seed=2, top_p=1.0))
    expected = bard.generate(ids, max_tokens=3, seed=2, top_p=1.0, temperature=1.0)
    assert ids_of(tokens[0]) == expected.token_ids


def test_a_scored_text_is_what_score_finds(write: Ask, bard: LoadedModel) -> None:
    text = PROMPT + " é"
    tokens = write("score", prompt=text, top=3).json["tokens"]
    ids = bard.encode(text)
    assert ids_of(tokens) == ids
    assert tokens[0]["logprob"] is None
    assert tokens[0]["rank"] is None
    assert tokens[0]["top"] == []
    expected = bard.score(text)
    for k, token in enumerate(tokens[1:], 1):
        logits = next_logits(bard, ids[:k]).tolist()
        assert token["rank"] == rank_of(ids[k], logits)
        assert len(token["top"]) == 3
    total = sum(token["logprob"] for token in tokens[1:])
    assert -total / np.log(2) == pytest.approx(expected.summary.bits, rel=1e-5)


def test_bytes_that_are_no_characters_come_with_the_text(write: Ask) -> None:
    tokens = write("score", prompt="a 🦉").json["tokens"]
    data = b"".join(
        base64.b64decode(token["bytes"]) if "bytes" in token else token["text"].encode()
        for token in tokens
    )
    assert data.decode() == "a 🦉"
    assert any("bytes" in token for token in tokens)


def test_a_text_longer_than_the_context_is_scored_in_windows(write: Ask, bard: LoadedModel) -> None:
    text = "to be or not to be, that is the question. " * 60
    tokens = write("score", prompt=text, top=0).json["tokens"]
    assert len(tokens) == len(bard.encode(text)) > 512
    total = sum(token["logprob"] for token in tokens[1:])
    assert -total / np.log(2) == pytest.approx(bard.score(text).summary.bits, rel=1e-5)


def test_the_tokens_of_a_continuation_are_scored_alike(write: Ask, bard: LoadedModel) -> None:
    settings = {"max_tokens": 20, "seed": 5, "temperature": 1.3}
    [written], _ = texts_of(write("continue", prompt=PROMPT, top=2, **settings))
    ids = bard.encode(PROMPT)
    scored = write("score", prompt=ids + ids_of(written), top=2).json["tokens"][len(ids) :]
    for one, other in zip(written, scored, strict=True):
        assert one["rank"] == other["rank"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-5)


def test_next_gives_the_logits_of_which_log_probabilities_are_made(
    write: Ask, bard: LoadedModel
) -> None:
    found = write("next", prompt=PROMPT, top=5).json
    row = next_logits(bard, bard.encode(PROMPT))
    best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:5]
    assert ids_of(found["candidates"]) == best
    assert [c["logit"] for c in found["candidates"]] == pytest.approx(row[best], abs=1e-4)
    assert found["size"] == len(row) == 2048
    log_total = float(np.log(np.exp(row).sum()))
    assert found["log_total"] == pytest.approx(log_total, abs=1e-5)
    p = np.exp(row - log_total)
    assert found["entropy"] == pytest.approx(float(-(p * np.log(p)).sum()), abs=1e-5)
    continued, _ = texts_of(write("continue", prompt=PROMPT, max_tokens=1, top=5))
    expected = [one["logprob"] for one in continued[0][0]["top"]]
    logprobs = [c["logit"] - found["log_total"] for c in found["candidates"]]
    assert logprobs == pytest.approx(expected, abs=1e-5)


def test_next_tells_of_the_texts_own_tokens_and_of_all_others_together(
    write: Ask, bard: LoadedModel
) -> None:
    found = write("next", prompt=PROMPT, top=5).json
    ids = bard.encode(PROMPT)
    best, past = ids_of(found["candidates"]), ids_of(found["text"])
    assert past == sorted(set(ids) - set(best))
    assert found["read"] == len(ids)
    rest = found["rest"]
    assert sum(rest["counts"]) + len(best) + len(past) == found["size"]
    logits = [one["logit"] for one in found["candidates"] + found["text"]]
    total = np.logaddexp.reduce([*logits, *rest["masses"]])
    assert total == pytest.approx(found["log_total"], abs=1e-5)


def test_an_empty_text_is_the_beginning_of_a_document(write: Ask, bard: LoadedModel) -> None:
    asked = [write("next", prompt=p, top=3).json for p in ("", [], [bard.tokenizer.beginning()])]
    assert asked[0] == asked[1] == asked[2]


RULES: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.4,
    "xtc_probability": 0.5,
    "seed": 4,
}


def test_the_stages_are_those_of_the_sampler(write: Ask, bard: LoadedModel) -> None:
    ids = bard.encode(PROMPT)
    found = write("stages", prompt=PROMPT, top=4, regex="[ a-z]+", **RULES).json["stages"]
    config = bard.configure(**RULES, constraint=constraint.resolve(regex="[ a-z]+"))
    with bard.batcher().alone() as decoder:
        expected = loop.explain(decoder, bard.tokenizer, ids, config)
    assert [s["rule"] for s in found] == [s.rule for s in expected]
    assert [s["candidates"] for s in found] == [s.candidates for s in expected]
    for one, other in zip(found, expected, strict=True):
        top = [(t["id"], t["before"], t["after"]) for t in one["top"]]
        assert len(top) == 4
        assert np.allclose(top, other.top[:4], atol=1e-5)


def test_stages_within_a_text_are_those_that_chose_its_next_token(
    write: Ask, bard: LoadedModel
) -> None:
    settings = RULES | {"temperature": 1.5, "xtc_probability": 1.0, "xtc_threshold": 0.05}
    [written], _ = texts_of(write("continue", prompt=PROMPT, max_tokens=12, **settings))
    prompt, ids = bard.encode(PROMPT), ids_of(written)
    for k in range(len(ids)):
        found = write(
            "stages", prompt=prompt + ids[:k], prompt_length=len(prompt), top=1000, **settings
        ).json["stages"]
        left = {token["id"] for token in found[-1]["top"] if token["after"] > 0}
        assert ids[k] in left


def test_a_continuation_under_a_plan_is_what_the_library_writes(
    write: Ask, bard: LoadedModel
) -> None:
    plan: dict[str, Any] = {
        "ablate": ["1.2", "mlp.3"],
        "steer": [{"towards": "love", "away": "hate", "layer": 2, "strength": 2.0}],
    }
    settings = {"max_tokens": 10, "seed": 3, "temperature": 1.0, "top_p": 1.0}
    altered = bard.under(Interventions.of(**plan))
    expected = altered.generate(PROMPT, samples=2, **settings)
    for _ in range(2):  # the second time the model is open
        tokens, last = texts_of(write("continue", prompt=PROMPT, n=2, plan=plan, **settings))
        assert [ids_of(one) for one in tokens] == [s.token_ids for s in expected.samples]
        assert last["facts"] == altered.facts()
    others, _ = texts_of(write("continue", prompt=PROMPT, n=2, **settings))
    assert others != tokens


def test_an_empty_plan_changes_nothing(write: Ask, bard: LoadedModel) -> None:
    plan = {"ablate": [], "ablate_with": "zero", "reference": None, "steer": []}
    _, last = texts_of(write("continue", prompt=PROMPT, max_tokens=2, plan=plan))
    assert last["facts"] == bard.facts()


@pytest.mark.parametrize("plan", [None, {"ablate": ["0.1"]}])
def test_a_client_that_goes_frees_its_place(
    served: tuple[int, Server], write: Ask, plan: Any
) -> None:
    port, server = served
    body = {"prompt": "O", "max_tokens": 10**6, "ignore_eos": True, "plan": plan}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/page/v1/continue", json.dumps(body), servers.JSON)
    response = connection.getresponse()
    assert response.readline().startswith(b'data: {"news":')
    sock: socket.socket = connection.sock or response.fp.raw._sock  # type: ignore[union-attr]
    sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    engine = server.service.engine
    assert engine is not None
    servers.until(lambda: engine.open == 0)
    other = {"ablate": ["0.2"]} if plan else None  # waits for the first one's end
    assert write("continue", prompt="O", max_tokens=1, plan=other).status == 200


def test_a_full_queue_is_said(bard: LoadedModel) -> None:
    with servers.here(bard, max_sequences=1, queue=0) as (port, server):
        endless = {"prompt": "O", "max_tokens": 10**6, "ignore_eos": True, "overflow": "slide"}
        with servers.begun(port, **endless):
            servers.until(lambda: server.service.engine and server.service.engine.open)
            for name in ("score", "next", "stages", "continue"):
                found = servers.ask(port, f"/page/v1/{name}", {"prompt": "O"})
                assert found.status == 429
                assert "retry-after" in found.headers


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("score", {}, "prompt must be a text or a list of token ids"),
    ("score", {"prompt": 1}, "prompt must be a text or a list of token ids"),
    ("score", {"prompt": [2048]}, "a prompt of token ids has whole numbers from 0 to 2047"),
    ("score", {"prompt": ["a"]}, "a prompt of token ids has whole numbers from 0 to 2047"),
    ("score", {"prompt": "a", "top": 101}, "top must be a whole number from 0 to 100, not 101"),
    ("score", {"prompt": "a", "tpo": 1}, "unknown field 'tpo'; did you mean 'top'?"),
    ("score", {"prompt": "a " * 9000}, "too many to score at once"),
    ("next", {"prompt": "a", "top": 0}, "top must be a whole number from 1 to 1000, not 0"),
    ("next", {"prompt": "a", "top": True}, "top must be a whole number from 1 to 1000, not"),
    ("stages", {"prompt": "a", "prompt_length": 2}, "prompt_length must be a whole number from"),
    ("stages", {"prompt": "a", "temperature": -1}, "temperature must be 0 (greedy) or"),
    ("stages", {"prompt": "a", "regex": "("}, "regex"),
    ("continue", {"prompt": "a", "stream": True}, "unknown field 'stream'"),
    ("continue", {"prompt": "a", "n": 129}, "n may be up to 128, not 129"),
    ("continue", {"prompt": "a", "top_p": 2}, "top_p must be above 0 and at most 1"),
    ("continue", {"prompt": "a", "max_tokens": -1}, "max_tokens must be at least 1"),
    ("continue", {"prompt": "a", "choice": "b"}, "choice must be a list of texts"),
    ("continue", {"prompt": "a", "overflow": "x"}, "overflow must be slide or error"),
    ("continue", {"prompt": "a", "plan": []}, "plan must be an object"),
    ("continue", {"prompt": "a", "plan": {"ablate": ["9.0"]}}, "there is no head 9.0"),
    ("continue", {"prompt": "a", "plan": {"ablate": ["x"]}}, "cannot ablate 'x'"),
    ("continue", {"prompt": "a", "plan": {"abl": []}}, "unknown field 'abl'"),
]


@pytest.mark.parametrize(("name", "body", "reason"), WRONG)
def test_a_wrong_field_is_one_sentence(
    write: Ask, name: str, body: dict[str, Any], reason: str
) -> None:
    found = write(name, **body)
    assert found.status == 400
    assert reason in found.error
    assert "\n" not in found.error


PAGE = [
    ("/page/v1/model", None),
    ("/page/v1/heads", None),
    *((f"/page/v1/{name}", {"prompt": "O"}) for name in ("score", "next", "stages", "continue")),
    *((f"/page/v1/{name}", {"prompt": "O"}) for name in ("inspect", "lens", "attention")),
]


def test_with_a_key_the_page_is_there_for_all_and_its_answers_for_those_who_know_it(
    bard: LoadedModel,
) -> None:
    with servers.here(bard, policy=Policy(key="secret", hosts=("127.0.0.1",))) as (port, _):
        ask = partial(servers.ask, port)
        for path in ("/", "/page/app.js", "/page/style.css"):
            assert ask(path).status == 200
        for path, body in PAGE:
            assert ask(path, body).status == 401
            wrong = {"Authorization": "Bearer x"}
            assert ask(path, body, headers=wrong).status == 401
            right = {"Authorization": "Bearer secret"}
            assert ask(path, body, headers=right | {"Host": "example.com"}).status == 403
        for path, body in PAGE[:4]:
            assert ask(path, body, headers=right).status == 200
        assert ask("/", headers={"Host": "example.com"}).status == 403


def test_another_sites_page_cannot_ask(ask: Ask) -> None:
    origin = {"Origin": "https://example.com"}
    for path, body in PAGE[:4]:
        assert "access-control-allow-origin" not in ask(path, body, headers=origin).headers
    plain = {"Content-Type": "text/plain"}  # which needs no leave of the browser
    assert ask("/page/v1/score", {"prompt": "O"}, headers=plain).status == 415


def test_every_path_of_the_page_is_described(ask: Ask, served: tuple[int, Server]) -> None:
    paths = ask("/openapi.json").json["paths"]
    service = served[1].service
    named = [*writing.routes(service), *insight.routes(service)]
    assert {route.path for route in named} == {path for path in paths if "/page/" in path}
    for route in named:
        assert {method.lower() for method in (route.methods or ()) if method != "HEAD"} == set(
            paths[route.path]
        )
