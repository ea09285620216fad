"""Logit biases, as people write them."""

from __future__ import annotations

import math

import pytest

from gpt2cli.errors import UsageError
from gpt2cli.sampling import bias
from gpt2cli.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("London", "written TOKEN=AMOUNT"),
        ("=1", "written TOKEN=AMOUNT"),
        ("a=b", "must be a number, or -inf to ban, not 'b'"),
        ("a=inf", "must be a number, or -inf"),
        ("a=nan", "must be a number, or -inf"),
    ],
)
def test_a_bias_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bias.parse([text])


def test_a_bias_is_by_text_or_by_id(tiny_tokenizer: Tokenizer) -> None:
    parsed = bias.parse([" the=2.5", "#7=-inf", "==1", "<|endoftext|>=-1"])
    assert parsed == {" the": 2.5, "#7": -math.inf, "=": 1.0, "<|endoftext|>": -1.0}
    found = bias.resolve(parsed, tiny_tokenizer)
    (the,) = tiny_tokenizer.encode(" the")
    (equals,) = tiny_tokenizer.encode("=")
    assert found == {the: 2.5, 7: -math.inf, equals: 1.0, tiny_tokenizer.end_of_text: -1.0}


def test_a_bias_on_several_tokens_says_which_they_are(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"'xyz' is 3 tokens, not one: 'x' \(#\d+\), 'y'"):
        bias.resolve({"xyz": 1.0}, tiny_tokenizer)
    with pytest.raises(UsageError, match="from 0 to 299, not to #300"):
        bias.resolve({"#300": 1.0}, tiny_tokenizer)
