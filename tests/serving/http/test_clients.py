"""The clients that people have: OpenAI's library, `llm` and LangChain."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

from gpt2cli.api import LoadedModel
from gpt2cli.serving.http.server import Server
from gpt2cli.serving.http.settings import Policy

openai = pytest.importorskip("openai")

KEY = "a key"
BODY: dict[str, Any] = {"model": "bard", "prompt": "ROMEO:", "seed": 1, "max_tokens": 12}


@pytest.fixture(scope="module")
def locked(bard: LoadedModel) -> Iterator[tuple[int, Server]]:
    """A server with a key: clients send one always."""
    with servers.here(bard, policy=Policy(key=KEY), max_sequences=4, queue=0) as found:
        yield found


@pytest.fixture(scope="module")
def url(locked: tuple[int, Server]) -> str:
    return f"http://127.0.0.1:{locked[0]}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def text(bard: LoadedModel) -> str:
    """What `BODY` asks for."""
    settings = {name: value for name, value in BODY.items() if name != "model"}
    return bard.generate(**settings, temperature=1.0, top_p=1.0).text


def raw(url: str, body: dict[str, Any]) -> Any:
    port = int(url.removesuffix("/v1").rpartition(":")[2])
    headers = {"Authorization": f"Bearer {KEY}"}
    return servers.ask(port, "/v1/completions", body, headers=headers)


def test_openais_library_has_every_field_of_an_answer(client: Any, url: str, text: str) -> None:
    body = BODY | {"logprobs": 2, "echo": True, "n": 2}
    found = client.completions.create(**body)
    assert found.choices[0].text == "ROMEO:" + text
    assert found.usage.total_tokens == found.usage.prompt_tokens + 24
    sent, anew = raw(url, body).json, found.to_dict(mode="json")
    for name in ("id", "created"):
        assert isinstance(sent.pop(name), type(anew.pop(name)))
    assert anew == sent
    # Its types know nothing of the first token of an echo, which has no log-probability.
    sent = raw(url, body | {"echo": False}).json
    assert type(found).model_validate(sent, strict=True).choices[0].text == text


def test_openais_library_reads_a_stream(client: Any, text: str) -> None:
    options = {"include_usage": True}
    *chunks, last = list(client.completions.create(**BODY, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], 12)


def test_openais_library_sends_our_own_fields_besides(client: Any) -> None:
    extra = {"regex": "[0-9]{4}", "top_k": 5}
    found = client.completions.create(**BODY, extra_body=extra)
    assert found.choices[0].text.isdigit()


def test_openais_library_asks_without_blocking(url: str, text: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
            found = await asyncio.gather(*(client.completions.create(**BODY) for _ in range(4)))
            assert [one.choices[0].text for one in found] == [text] * 4
            stream = await client.completions.create(**BODY, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == text
            models = [model.id async for model in client.models.list()]
            assert models == ["bard"]

    asyncio.run(ask())


def test_openais_library_finds_the_model(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["bard"]
    assert client.models.retrieve("bard").owned_by == "gpt2cli"


def test_a_stream_that_is_closed_ends_at_once(client: Any, locked: tuple[int, Server]) -> None:
    engine = locked[1].service.engine
    assert engine is not None
    endless = {"max_tokens": 50_000, "extra_body": {"overflow": "slide", "ignore_eos": True}}
    with client.completions.create(**BODY | endless, stream=True) as stream:
        next(iter(stream))
        assert engine.open == 1
    servers.until(lambda: engine.open == 0)
    free = engine.scheduler.decoder
    servers.until(lambda: free.free_pages == free.pages)


def test_errors_are_those_of_openais_library(client: Any, url: str) -> None:
    create = client.completions.create
    with pytest.raises(openai.BadRequestError, match="temperature must be") as bad:
        create(**BODY, temperature=-1)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="exceed the context") as bad:
        create(**BODY | {"max_tokens": 5000})
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        create(**BODY | {"model": "gpt-4"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="knows no chat"):
        client.chat.completions.create(model="bard", messages=[{"role": "user", "content": "a"}])
    with (
        openai.OpenAI(base_url=url, api_key="wrong") as other,
        pytest.raises(openai.AuthenticationError) as wrong,
    ):
        other.models.list()
    assert wrong.value.code == "invalid_api_key"


def test_openais_library_comes_again_when_the_queue_is_full(
    client: Any, url: str, locked: tuple[int, Server], text: str
) -> None:
    engine = locked[1].service.engine
    assert engine is not None
    refused = locked[1].service.metrics.requests.labels("/v1/completions", "429")
    endless = {"max_tokens": 50_000, "extra_body": {"overflow": "slide", "ignore_eos": True}}

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=5) as patient:
            before = refused._value.get()
            waiting = asyncio.create_task(patient.completions.create(**BODY))
            while refused._value.get() == before:
                await asyncio.sleep(0.01)
            stream.close()
            found = await waiting
            return str(found.choices[0].text)

    with client.completions.create(**BODY | endless, n=4, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="4 texts") as full:
            client.completions.create(**BODY)
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert asyncio.run(ask()) == text


@pytest.mark.slow
def test_llm_prompts_the_model(url: str, tmp_path: Path, text: str) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        "- model_id: shakespeare\n"
        "  model_name: bard\n"
        f"  api_base: {url}\n"
        "  api_key_name: bard\n"
        "  completion: true\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("keys", "set", "bard", "--value", KEY)
    options = ["-o", "seed", "1", "-o", "max_tokens", "12"]
    for more in ([], ["--no-stream"]):
        assert run("ROMEO:", "-m", "shakespeare", *options, *more) == text + "\n"


@pytest.mark.slow
def test_langchain_asks_for_many_texts(url: str, bard: LoadedModel, text: str) -> None:
    langchain = pytest.importorskip("langchain_openai")

    def model(**details: Any) -> Any:
        given = {"model": "bard", "base_url": url, "api_key": KEY, "seed": 1, "max_tokens": 12}
        return langchain.OpenAI(**given | {"temperature": 1.0} | details)

    assert model().invoke("ROMEO:") == text
    prompts = ["ROMEO:", "JULIET:", "a"]
    settings = {"seed": 1, "max_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    expected = [bard.generate(prompt, samples=2, **settings).samples for prompt in prompts]
    found = model(n=2).generate(prompts)
    texts = [[one.text for one in each] for each in found.generations]
    assert texts == [[sample.text for sample in samples] for samples in expected]
    assert found.llm_output["token_usage"]["completion_tokens"] == sum(
        sample.count for samples in expected for sample in samples
    )
    assert model(n=2, best_of=3).generate(["a"]).generations[0][0].text
    biased = model(logit_bias={"11": 100}, temperature=0).invoke("a")
    assert biased == bard.tokenizer.decode([11] * 12)
    assert "".join(model(streaming=True).stream("ROMEO:")) == text
    assert asyncio.run(model().ainvoke("ROMEO:")) == text
    assert model(streaming=True).invoke("ROMEO:") == text
