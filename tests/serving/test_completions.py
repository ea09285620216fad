"""OpenAI's requests in our settings."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2cli import api
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import ContextError, UsageError
from gpt2cli.serving import completions
from gpt2cli.serving.choices import Answer
from gpt2cli.serving.completions import read


def test_the_fields_of_a_request_become_settings() -> None:
    request = read(
        {
            "model": "gpt2",
            "prompt": "Say",
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
    )
    assert request.prompts == ["Say"]
    assert request.answer == Answer("", 2, True)
    assert (request.is_echoing, request.is_streaming) == (False, False)
    assert request.settings == {
        "samples": 2,
        "stop": ["\n", "."],
        "temperature": 0.5,
        "logprobs": 3,
        "bias": {50: -100, 7: 1.5},
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "seed": 4,
        "max_tokens": 16,
        "top_p": 1.0,
    }


def test_every_setting_of_ours_is_a_field_of_the_same_name() -> None:
    ours = {name: getattr(SamplingConfig(), name) for name in SamplingConfig.__dataclass_fields__}
    assert ours.keys() <= set(completions.KNOWN)
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "xtc_probability": 0.5}
    extra |= {"ignore_eos": True, "min_tokens": 2, "stop_token_ids": [3], "overflow": "slide"}
    settings = read({"prompt": "a"} | extra).settings
    assert {name: settings[name] for name in extra} == extra
    assert "top_p" not in read({"mirostat_tau": 3.0}).settings


@pytest.mark.parametrize(
    ("body", "prompts"),
    [
        ({}, [""]),
        ({"prompt": None}, [""]),
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ["a"]}, ["a"]),
        ({"prompt": ["a", ""]}, ["a", ""]),
        ({"prompt": [1, 2]}, [[1, 2]]),
        ({"prompt": [[1, 2], [3]]}, [[1, 2], [3]]),
        ({"prompt": ["a", [1]]}, ["a", [1]]),
    ],
)
def test_a_prompt_is_text_or_ids_or_several(body: dict[str, Any], prompts: list[Any]) -> None:
    assert read(body).prompts == prompts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_tokens", 3.0), ("top_k", 5.0), ("seed", 2.0), ("min_tokens", 1.0)],
    ],
)
def test_a_whole_number_may_be_written_with_a_point(field: str, value: float) -> None:
    found = read({"prompt": "a", field: value}).settings[field]
    assert (found, type(found)) == (value, int)


def test_what_other_services_write_is_understood() -> None:
    assert read({"top_k": -1}).settings.get("top_k") is None
    assert read({"top_k": 0}).settings.get("top_k") is None
    assert read({"seed": -1}).settings["seed"] == 2**64 - 1
    assert read({"n": 2.0}).settings["samples"] == 2
    assert read({"json_schema": {"type": "integer"}}).settings["constraint"] is not None
    assert read({"suffix": ""}).prompts == [""]


def test_echo_with_logprobs_asks_for_those_of_the_whole_prompt() -> None:
    request = read({"prompt": "a", "echo": True, "logprobs": 2})
    assert request.settings["prompt_logprobs"] == request.settings["logprobs"] == 2
    assert request.settings["overflow"] == "error"
    assert "prompt_logprobs" not in read({"prompt": "a", "echo": True}).settings


def test_no_tokens_asked_for_is_one_that_is_not_shown() -> None:
    request = read({"prompt": "a", "max_tokens": 0})
    assert request.settings["max_tokens"] == 1
    assert not request.answer.asked


def test_best_of_measures_what_it_chooses_from() -> None:
    request = read({"prompt": "a", "n": 2, "best_of": 5})
    assert (request.settings["samples"], request.settings["logprobs"]) == (5, 0)
    assert request.answer == Answer("", 2)


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        ({"temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'", None),
        ({"messages": []}, "knows no chat", None),
        ({"suffix": "x"}, "suffix is not possible", "suffix"),
        ({"model": 1}, "model must be text", "model"),
        ({"user": []}, "user must be text", "user"),
        ({"n": 0}, "n must be a whole number from 1", "n"),
        ({"n": True}, "n must be a whole number", "n"),
        ({"n": 3, "best_of": 2}, r"best_of must be at least n \(3\), not 2", "best_of"),
        ({"best_of": 2, "stream": True}, "best_of and stream", "best_of"),
        ({"logprobs": -1}, "logprobs must be a whole number from 0", "logprobs"),
        ({"logprobs": True}, "logprobs must be a whole number", "logprobs"),
        ({"echo": "yes"}, "echo must be true or false", "echo"),
        ({"stream": 1}, "stream must be true or false", "stream"),
        ({"stream_options": {"include_usage": True}}, "need stream", "stream_options"),
        ({"stream": True, "stream_options": []}, "must be an object", "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usge": True}},
            "no 'include_usge'; did you mean 'include_usage'",
            "stream_options",
        ),
        ({"temperature": "1"}, "temperature must be a number", "temperature"),
        ({"overflow": "cut"}, "overflow must be slide or error", "overflow"),
        ({"stop": ["a"] * 257}, "up to 256 texts", "stop"),
        ({"stop": "a" * 1001}, "up to 1,000 characters", "stop"),
        ({"logit_bias": {"the": 1}}, "must name ids", "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "must name ids", "logit_bias"),
        ({"logit_bias": [1]}, "must be an object", "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "must have numbers", "logit_bias"),
        ({"logit_bias": {"1": 1e31}}, "must have numbers", "logit_bias"),
        ({"choice": []}, "choice must be a list of texts", "choice"),
        ({"choice": "a"}, "choice must be a list of texts", "choice"),
        ({"regex": 5}, "regex must be text", "regex"),
        ({"prompt": 5}, "prompt must be text", "prompt"),
        ({"prompt": []}, "prompt must be text", "prompt"),
        ({"prompt": [[]]}, "prompt must be text", "prompt"),
        ({"prompt": ["a", 1]}, "prompt must be text", "prompt"),
        ({"prompt": [1, True]}, "prompt must be text", "prompt"),
        ({"prompt": [1, "a"]}, "prompt must be text", "prompt"),
    ],
)
def test_a_body_that_cannot_be_served_says_why(
    body: dict[str, Any], reason: str, param: str | None
) -> None:
    with pytest.raises(UsageError, match=reason) as found:
        read({"prompt": "a"} | body)
    assert completions.what_is_wrong(found.value)["error"]["param"] == param


def test_an_error_names_the_fields_of_the_request() -> None:
    with pytest.raises(UsageError) as found:
        api.load("bard").configure(samples=0)
    error = completions.what_is_wrong(found.value)["error"]
    assert error["param"] == "n"
    assert error["message"].startswith("n must be at least 1")
    too_long = completions.what_is_wrong(ContextError("too long", "overflow"))["error"]
    assert (too_long["code"], too_long["type"]) == (
        "context_length_exceeded",
        "invalid_request_error",
    )
