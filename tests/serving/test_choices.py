"""Answers in OpenAI's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers import BYTES
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.generation.record import Completion, Sample
from gpt2cli.generation.request import ChosenLogprob, Event, Logprob
from gpt2cli.serving import choices
from gpt2cli.serving.choices import Answer, Lister
from gpt2cli.text.tokenizer import Tokenizer

END = 256  # end-of-text among BYTES


def test_all_tokens_of_openais_vocabulary_have_names_of_their_own(openai_vocabulary: Path) -> None:
    tokenizer = Tokenizer.load(openai_vocabulary)
    names = [choices.name_of(i, tokenizer) for i in range(tokenizer.size)]
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
    return choices.choices_of(found, answer, list(prompt.encode()), BYTES, first=4)


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
    [choice] = choices.choices_of(found, answer, [0x70, 0xE2], BYTES)
    assert choice["text"] == "p�a"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_nothing_asked_for_shows_the_echo_alone() -> None:
    answer = Answer("pq", 1, True, asked=False)
    [choice] = answered(answer, sample("a", -1), prompt="pq")
    assert (choice["text"], choice["finish_reason"]) == ("pq", "length")
    assert choice["logprobs"]["tokens"] == ["p", "q"]
    assert choices.written(Completion(0, 7, 2, [sample("a", -1)]), answer) == 0


def test_the_token_that_ends_a_text_counts_as_generated() -> None:
    found = Completion(0, 7, 1, [sample("abc", -1), sample("ab", -1, ended=True)])
    assert choices.written(found, Answer()) == 6


def test_an_answer_is_json_without_surprises() -> None:
    whole = choices.completion("cmpl-1", 5, "bard", answered(Answer(), sample("a", -1)), None)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
