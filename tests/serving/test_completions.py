"""OpenAI's requests in our settings, and answers in its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import BYTES
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli import api
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import ContextError, UsageError
from gpt2cli.generation.record import Completion, Sample
from gpt2cli.generation.request import ChosenLogprob, Event, Logprob
from gpt2cli.serving import completions
from gpt2cli.serving.completions import Answer, Lister, read
from gpt2cli.text.tokenizer import Tokenizer

END = 256  # end-of-text among BYTES


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


def test_all_tokens_of_openais_vocabulary_have_names_of_their_own(openai_vocabulary: Path) -> None:
    tokenizer = Tokenizer.load(openai_vocabulary)
    names = [completions.name_of(i, tokenizer) for i in range(tokenizer.size)]
    assert len(set(names)) == tokenizer.size == 50257
    for token_id, name in enumerate(names):
        data = tokenizer.decode_bytes([token_id])
        if name.startswith("bytes:"):
            assert bytes.fromhex(name[6:].replace("\\x", "")) == data
        else:
            assert name.encode() == data


def as_chosen(ids: list[int]) -> list[tuple[int, ChosenLogprob]]:
    return [(i, ChosenLogprob("", i, -1.0)) for i in ids]


BYTES_OF_TEXT = st.text(max_size=8).map(str.encode) | st.binary(max_size=6)


@given(parts=st.lists(BYTES_OF_TEXT, max_size=4), cuts=st.lists(st.integers(1, 12)))
def test_text_offset_is_the_character_in_which_a_token_begins(
    parts: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(parts)
    ids, lister = list(data), Lister(BYTES)
    offsets: list[int] = []
    for cut in [*cuts, len(ids)]:  # as they come in a stream
        offsets += lister.list(as_chosen(ids[:cut]))["text_offset"]
        ids = ids[cut:]
    expected = []
    text = data.decode(errors="replace")
    for place in range(len(data)):
        # The first so many bytes have their last character, whole or not, where the byte is.
        expected.append(len(data[: place + 1].decode(errors="replace")) - 1)
    assert offsets == expected
    assert all(offset < len(text) for offset in offsets)


def test_tokens_of_several_bytes_begin_where_their_first_byte_is() -> None:
    tokens = [b"\xe2", b"\x80", b"\x99a", b"\xe2", b"b\xe2\x80", b"\x99", b"c"]
    tokenizer = Tokenizer(
        {bytes([i]): i for i in range(256)} | {b"\x99a": 256, b"b\xe2\x80": 257}, {}
    )
    ids = [tokenizer.token_bytes().index(token) for token in tokens]
    assert tokenizer.decode(ids) == "’a�b’c"
    listed = Lister(tokenizer).list(as_chosen(ids))
    assert listed["text_offset"] == [0, 0, 0, 2, 3, 4, 5]
    assert listed["tokens"][:3] == ["bytes:\\xe2", "bytes:\\x80", "bytes:\\x99\\x61"]


def test_the_chosen_token_is_among_the_top_once_and_with_the_same_number() -> None:
    top = (Logprob("a", 97, -0.25), Logprob("b", 98, -2.0))
    listed = Lister(BYTES).list(
        [(97, ChosenLogprob("a", 97, -0.25, top)), (99, ChosenLogprob("c", 99, -7.0, top))]
    )
    assert listed["top_logprobs"] == [{"a": -0.25, "b": -2.0}, {"a": -0.25, "b": -2.0, "c": -7.0}]
    assert listed["token_logprobs"] == [-0.25, -7.0]


def sample(text: str, logprob: float, *, ended: bool = False) -> Sample:
    """A sample of the letters of a text."""
    found = Sample()
    for place, c in enumerate(text, start=1):
        reason = "length" if place == len(text) and not ended else None
        found.add(Event(0, ord(c), c, reason, ChosenLogprob(c, ord(c), logprob)))
    if ended:
        found.add(Event(0, None, "", "eos", ChosenLogprob("", END, logprob)))
    return found


def answered(answer: Answer, *samples: Sample, prompt: str = "") -> list[dict[str, Any]]:
    found = Completion(0, 7, max(1, len(prompt)), list(samples))
    if answer.echo and answer.listed:
        read = [ChosenLogprob(c, ord(c), -1.0) for c in prompt]
        found.prompt_logprobs = [None, *read[1:]]
    return completions.choices(found, answer, list(prompt.encode()), BYTES, first=4)


def test_a_choice_says_what_was_written_and_why_it_ended() -> None:
    one, other = answered(Answer(), sample("ab", -1), sample("c", -2, ended=True))
    common = {"logprobs": None, "seed": 7}
    assert one == {"index": 4, "text": "ab", "finish_reason": "length"} | common
    assert other == {"index": 5, "text": "c", "finish_reason": "stop"} | common


def test_the_best_are_the_most_probable_per_token() -> None:
    samples = sample("aaaa", -1), sample("b", -2), sample("cc", -0.5), sample("", -0.9, ended=True)
    shown = answered(Answer("", 2), *samples)
    assert [(choice["index"], choice["text"]) for choice in shown] == [(4, "cc"), (5, "")]


def test_an_echo_comes_before_the_text_with_its_logprobs() -> None:
    [choice] = answered(Answer("pqr", 1, True), sample("ab", -1, ended=True), prompt="pqr")
    assert choice["text"] == "pqrab"
    listed = choice["logprobs"]
    assert listed["tokens"] == ["p", "q", "r", "a", "b", "<|endoftext|>"]
    assert listed["token_logprobs"] == [None, -1, -1, -1, -1, -1]
    assert listed["top_logprobs"][0] is None
    assert listed["text_offset"] == [0, 1, 2, 3, 4, 5]


def test_half_a_character_at_the_end_of_an_echo_is_one_of_its_own() -> None:
    found = Completion(0, 7, 2, [sample("a", -1)])
    found.prompt_logprobs = [None, ChosenLogprob("", 0xE2, -1.0)]
    answer = Answer(BYTES.decode([0x70, 0xE2]), 1, True)
    [choice] = completions.choices(found, answer, [0x70, 0xE2], BYTES)
    assert choice["text"] == "p�a"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_nothing_asked_for_shows_the_echo_alone() -> None:
    answer = Answer("pq", 1, True, asked=False)
    [choice] = answered(answer, sample("a", -1), prompt="pq")
    assert (choice["text"], choice["finish_reason"]) == ("pq", "length")
    assert choice["logprobs"]["tokens"] == ["p", "q"]
    assert completions.written(Completion(0, 7, 2, [sample("a", -1)]), answer) == 0


def test_the_token_that_ends_a_text_counts_as_generated() -> None:
    found = Completion(0, 7, 1, [sample("abc", -1), sample("ab", -1, ended=True)])
    assert completions.written(found, Answer()) == 6


def test_an_answer_is_json_without_surprises() -> None:
    whole = completions.completion("cmpl-1", 5, "bard", answered(Answer(), sample("a", -1)), None)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
