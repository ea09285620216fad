"""Settings by name: every value shown can be typed, and wrong ones are one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.settings import change, configure, show

PLAIN = GenerationConfig()


def test_settings_are_as_json_has_them() -> None:
    given = '{"temperature": 1, "stop": ["a", "b"], "bias": {"5": -1, "7": "-inf"}, "seed": 2}'
    config = configure(SamplingConfig(), **json.loads(given))
    assert (config.sampling.temperature, config.stop, config.seed) == (1.0, ("a", "b"), 2)
    assert config.bias == {5: -1.0, 7: -math.inf}
    assert configure(SamplingConfig(), stop="one").stop == ("one",)
    assert configure(SamplingConfig(), stop_token_ids=[5, 7]).stop_token_ids == (5, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": "ten"}, "max_tokens must be a whole number, not 'ten'"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"stop": 3}, "stop must be a text or a list of texts, not 3"),
        ({"stop": ["a", 3]}, "stop must be a text or a list of texts"),
        ({"stop_token_ids": 3}, "stop_token_ids must be a list of token ids, not 3"),
        ({"stop_token_ids": "3"}, "stop_token_ids must be a list of token ids, not '3'"),
        ({"stop_token_ids": [1, True]}, "stop_token_ids must be a list of token ids"),
        ({"stop_token_ids": [1.0]}, "stop_token_ids must be a list of token ids"),
        ({"stop_token_ids": [1], "beams": 2}, "beams and stop_token_ids cannot go together"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be between 0 and 100, not -1"),
        ({"prompt_logprobs": 101}, "prompt_logprobs must be between 0 and 100, not 101"),
        ({"prompt_logprobs": 0, "beams": 2}, "beams and prompt_logprobs cannot go together"),
        ({"bias": [1]}, "bias must map token ids to numbers"),
        ({"bias": {"x": 1}}, "bias must map token ids to numbers"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, not 1"),
        ({"seed": True}, "seed must be a whole number"),
        ({"temprature": 1}, "unknown setting 'temprature'; did you mean 'temperature'"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(GPT2CLIError, match=message):
        configure(SamplingConfig(), **given)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temperature", "0.7", replace(PLAIN, sampling=SamplingConfig(temperature=0.7))),
        ("top-k", "40", replace(PLAIN, sampling=SamplingConfig(top_k=40))),
        ("TOP_P", "1e-1", replace(PLAIN, sampling=SamplingConfig(top_p=0.1))),
        ("max_tokens", "7", replace(PLAIN, max_tokens=7)),
        ("seed", "0", replace(PLAIN, seed=0)),
        ("ignore_eos", "on", replace(PLAIN, ignore_eos=True)),
        ("stop", "ROMEO: ", replace(PLAIN, stop=("ROMEO: ",))),
        ("stop", r'"\n\n" "."', replace(PLAIN, stop=("\n\n", "."))),
    ],
)
def test_a_setting_is_changed_by_its_name(name: str, text: str, expected: GenerationConfig) -> None:
    assert change(PLAIN, name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", "unknown setting 'temprature'; did you mean 'temperature'"),
        ("samples", "2", "unknown setting 'samples'"),
        ("beams", "2", "unknown setting 'beams'"),
        ("prompt_logprobs", "2", "unknown setting 'prompt_logprobs'"),
        ("stop_token_ids", "[2]", "unknown setting 'stop_token_ids'"),
        ("temperature", "warm", "temperature must be a number, not 'warm'"),
        ("temperature", "-1", "temperature must be 0"),
        ("temperature", "off", "temperature must be a number, not 'off'"),
        ("top_k", "1.5", "top_k must be a whole number, not '1.5'"),
        ("top_p", "2", "top_p must be above 0 and at most 1, not 2.0"),
        ("max_tokens", "0", "max_tokens must be at least 1, not 0"),
        ("seed", "-1", "seed must be 0 or more, not -1"),
        ("ignore_eos", "maybe", "ignore_eos must be on or off, not 'maybe'"),
        ("stop", '""', "a stop string must not be empty"),
        ("stop", '"half', "stop must be text, or several texts in quotes"),
    ],
)
def test_wrong_settings_are_one_sentence(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        change(PLAIN, name, text)
    assert message in str(caught.value)


@given(
    sampling=st.builds(
        SamplingConfig,
        temperature=st.floats(0, 10),
        top_k=st.none() | st.integers(1),
        top_p=st.none() | st.floats(0.01, 1),
    ),
    stop=st.lists(st.text(min_size=1), max_size=3),
    ignore_eos=st.booleans(),
)
def test_what_is_shown_can_be_typed(
    sampling: SamplingConfig, stop: list[str], ignore_eos: bool
) -> None:
    config = GenerationConfig(sampling, stop=tuple(stop), ignore_eos=ignore_eos, seed=9)
    typed = PLAIN
    for name, text in show(config).items():
        typed = change(typed, name, text)
    assert typed == config


def test_mirostat_takes_the_place_of_what_it_cannot_go_with() -> None:
    config = GenerationConfig(sampling=SamplingConfig(top_p=0.9, min_p=0.1))
    assert change(config, "mirostat_tau", "5").sampling == SamplingConfig(mirostat_tau=5.0)
    assert change(config, "top_p", "off").sampling == SamplingConfig(min_p=0.1)
