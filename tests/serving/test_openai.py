"""OpenAI's batch lines: requests in our settings, and results that its library reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bulk_runs import read_rows, run, write_rows
from openai.types import Completion

from gpt2cli.errors import UsageError
from gpt2cli.serving import completions, openai


def line(**body: Any) -> dict[str, Any]:
    whole = {"model": "gpt2", "prompt": "Say"} | body
    return {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": whole}


def test_a_lines_body_is_read_as_the_servers() -> None:
    body = {"n": 2, "logprobs": 3, "echo": True, "logit_bias": {"50": -100}}
    assert openai.read(line(**body), ()) == completions.read({"prompt": "Say"} | body)


def test_the_runs_own_settings_come_before_the_services_defaults() -> None:
    assert openai.read(line(), {"temperature", "max_tokens"}).settings == {"top_p": 1, "samples": 1}
    assert "top_p" not in openai.read(line(), {"mirostat_tau"}).settings
    assert openai.read(line(temperature=0), {"temperature"}).settings["temperature"] == 0


def test_samples_and_logprobs_of_the_run_hold_for_lines_without_their_own(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [line(), line(n=1), line(logprobs=0, echo=True)])
    run(source, tmp_path / "out.jsonl", settings={"samples": 3, "logprobs": 2})
    every = [row["response"]["body"]["choices"] for row in read_rows(tmp_path / "out.jsonl")]
    assert [len(choices) for choices in every] == [3, 1, 3]
    tops = [choices[0]["logprobs"]["top_logprobs"][-1] for choices in every]
    assert [len(top) for top in tops] == [3, 3, 1]  # the chosen one besides


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ["a", "b"]}, "holds 2 prompts"),
        ({"suffix": "x"}, "suffix is not possible"),
        ({"stream": True}, "stream is not possible"),
        ({"n": 3, "best_of": 2}, r"best_of must be at least n \(3\), not 2"),
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
    assert len({choice["seed"] for choice in first["response"]["body"]["choices"]}) == 1
    assert body.usage is not None
    assert (body.usage.completion_tokens, body.usage.total_tokens) == (6, 8)
    logprobs = body.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list(body.choices[0].text)
    assert logprobs.text_offset == list(range(len(body.choices[0].text)))
    assert logprobs.top_logprobs is not None
    assert list(logprobs.top_logprobs[0]) == ["x", "y", logprobs.tokens[0]]
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
    lines = [line(best_of=4, seed=1), line(max_tokens=0, echo=True)]
    run(write_rows(tmp_path / "few.jsonl", lines), tmp_path / "few.out.jsonl", format="jsonl")
    one, none = read_rows(tmp_path / "few.out.jsonl")
    assert isinstance(one["completion"], str)
    assert (none["completion"], none["completion_tokens"]) == ("Say", 0)
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    run(source, tmp_path / "openai.jsonl", format="openai", ordered=False)
    rows = read_rows(tmp_path / "openai.jsonl")
    assert sorted((row["row"], row["custom_id"]) for row in rows) == [(0, "0"), (1, "1")]
    for row in rows:
        Completion.model_validate(row["response"]["body"])
