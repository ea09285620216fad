"""OpenAI's batch lines: requests in our settings, and results that its library reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bulk_runs import read_rows, run, write_rows
from openai.types import Completion

from gpt2cli.errors import UsageError
from gpt2cli.serving import openai


def line(**body: Any) -> dict[str, Any]:
    whole = {"model": "gpt2", "prompt": "Say"} | body
    return {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": whole}


def test_the_fields_of_a_request_become_settings() -> None:
    body = {
        "n": 2,
        "best_of": 2,
        "stop": ["\n", "."],
        "temperature": 0.5,
        "logprobs": 3,
        "logit_bias": {"50": -100, "7": 1.5},
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "seed": 4,
        "user": "me",
        "suffix": None,
        "stream": False,
    }
    request = openai.read(line(**body), ())
    assert (request.prompt, request.echo) == ("Say", False)
    assert request.settings == {
        "samples": 2,
        "stop": ["\n", "."],
        "temperature": 0.5,
        "logprobs": 3,
        "bias": {"#50": -100, "#7": 1.5},
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "seed": 4,
        "max_tokens": 16,
        "top_p": 1.0,
    }


def test_the_defaults_are_the_services_unless_the_run_has_its_own() -> None:
    assert openai.read(line(), ()).settings == {"max_tokens": 16, "temperature": 1, "top_p": 1}
    assert openai.read(line(), {"temperature", "max_tokens"}).settings == {"top_p": 1}
    assert "top_p" not in openai.read(line(), {"mirostat_tau"}).settings
    assert openai.read(line(temperature=0), {"temperature"}).settings["temperature"] == 0


@pytest.mark.parametrize(
    ("prompt", "read"),
    [(None, ""), ("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])],
)
def test_a_prompt_is_one_text_or_its_ids(prompt: Any, read: Any) -> None:
    assert openai.read(line(prompt=prompt), ()).prompt == read


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ["a", "b"]}, "holds 2 prompts"),
        ({"suffix": "x"}, "suffix is not possible"),
        ({"stream": True}, "stream is not possible"),
        ({"best_of": 3}, r"best_of must be n \(1\), not 3"),
        ({"echo": True, "logprobs": 0}, "gpt2 score"),
        ({"echo": "yes"}, "echo must be true or false"),
        ({"temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'"),
        ({"logit_bias": {"the": 1}}, "must name ids"),
        ({"logit_bias": [1]}, "must be an object"),
    ],
)
def test_a_body_that_cannot_be_served_says_why(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        openai.read(line(**change), ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"url": "/v1/chat/completions"}, "knows no chat"),
        ({"url": "/v1/embeddings"}, "url must be /v1/completions"),
        ({"method": "GET"}, "method must be POST"),
        ({"body": "x"}, "body must be an object"),
        ({"body": {"model": "gpt2"}}, "body has no prompt"),
        ({"custom_id": 5}, "custom_id must be text"),
    ],
)
def test_a_line_that_is_no_request_says_why(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        openai.read(line() | change, ())


def test_results_are_what_openais_library_reads(tmp_path: Path) -> None:
    lines = [
        line(n=2, max_tokens=3, logprobs=2),
        line(echo=True, prompt=[5, 6, 7]) | {"custom_id": "b"},
        line() | {"custom_id": "c", "url": "/v1/chat/completions"},
        "{",
    ]
    progress = run(write_rows(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    assert (progress.rows, progress.errors) == (4, 2)
    first, second, chat, broken = read_rows(tmp_path / "out.jsonl")
    assert [row["custom_id"] for row in (first, second, chat, broken)] == ["a", "b", "c", None]
    assert len({row["id"] for row in (first, second, chat, broken)}) == 4
    for row in (first, second):
        assert (row["error"], row["response"]["status_code"]) == (None, 200)
    body = Completion.model_validate(first["response"]["body"], strict=True)
    assert [choice.index for choice in body.choices] == [0, 1]
    assert (body.model, body.choices[0].finish_reason) == ("bard", "length")
    assert body.usage is not None
    assert (body.usage.completion_tokens, body.usage.total_tokens) == (6, 8)
    logprobs = body.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list(body.choices[0].text)
    assert logprobs.text_offset == list(range(len(body.choices[0].text)))
    assert logprobs.top_logprobs is not None
    assert list(logprobs.top_logprobs[0]) == ["x", "y"]
    text = Completion.model_validate(second["response"]["body"]).choices[0].text
    assert text.startswith("%&'")  # the prompt's ids in bard's vocabulary
    for row, reason in ((chat, "line 3: url must be"), (broken, "line 4: it is not JSON")):
        assert row["response"]["status_code"] == 400
        assert row["error"]["message"].startswith(reason)
        assert row["response"]["body"]["error"]["message"] == row["error"]["message"]


def test_the_format_of_the_output_can_be_the_other_one(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [line()])
    run(source, tmp_path / "plain.jsonl", format="jsonl")
    [row] = read_rows(tmp_path / "plain.jsonl")
    assert row["custom_id"] == "a"
    assert (row["finish_reason"], row["completion_tokens"]) == ("length", 8)
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    run(source, tmp_path / "openai.jsonl", format="openai", ordered=False)
    rows = read_rows(tmp_path / "openai.jsonl")
    assert sorted((row["row"], row["custom_id"]) for row in rows) == [(0, "0"), (1, "1")]
    for row in rows:
        Completion.model_validate(row["response"]["body"])
