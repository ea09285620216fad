"""The generation loop: stops, slides, seeds and batches, on a scripted and on a real decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    BYTES,
    MakeDecoder,
    ScriptedDecoder,
    certain,
    decoders,
    random_model,
    script,
)
from transformers import GPT2LMHeadModel

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.generation.loop import generate
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import slide
from gpt2cli.weights import checkpoint

GREEDY = SamplingConfig(temperature=0)


def run(text: str | bytes, **settings: Any) -> list[Event]:
    data = text.encode() if isinstance(text, str) else text
    config = GenerationConfig(GREEDY, **{"max_tokens": len(data), **settings})
    return list(generate(ScriptedDecoder(script(data)), BYTES, [65], config))


def text_of(events: list[Event], sample: int = 0) -> str:
    return "".join(event.text for event in events if event.sample == sample)


def test_yields_one_event_a_token_and_ends_for_length() -> None:
    events = run("hello")
    assert [event.text for event in events] == list("hello")
    assert [event.token_id for event in events] == list(b"hello")
    assert [event.finish_reason for event in events] == [None] * 4 + ["length"]


def test_end_of_text_ends_without_being_shown() -> None:
    decoder = ScriptedDecoder(script([*b"ab", 256, *b"cd"]))
    events = list(generate(decoder, BYTES, [65], GenerationConfig(GREEDY)))
    assert text_of(events) == "ab"
    assert (events[-1].token_id, events[-1].finish_reason) == (None, "eos")
    assert len(decoder.reads) == 3  # nothing is computed after the end


def test_end_of_text_can_be_ignored() -> None:
    decoder = ScriptedDecoder(script([*b"ab", 256, *b"cd"]))
    config = GenerationConfig(GREEDY, max_tokens=5, ignore_eos=True)
    assert text_of(list(generate(decoder, BYTES, [65], config))) == "ab<|endoftext|>cd"


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_token_ends_without_being_shown(ignore_eos: bool) -> None:
    stop, options = tuple(b"cx"), {"max_tokens": 9, "ignore_eos": ignore_eos}
    events = run("abcd", stop_token_ids=stop, **options)
    assert text_of(events) == "ab"
    assert [event.token_id for event in events] == [97, 98, None]
    assert events[-1].finish_reason == "stop"


def test_a_stop_token_releases_what_was_held_back() -> None:
    events = run("the en.", stop=("end",), stop_token_ids=tuple(b"."))
    assert text_of(events) == "the en"


def test_end_of_text_as_a_stop_token_ends_a_text_that_ignores_it() -> None:
    decoder = ScriptedDecoder(script([*b"ab", 256, *b"cd"]))
    config = GenerationConfig(GREEDY, stop_token_ids=(256,), ignore_eos=True)
    last = list(generate(decoder, BYTES, [65], config))[-1]
    assert (last.token_id, last.finish_reason) == (None, "stop")


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_no_stop_token_comes_before_the_least_number_of_tokens(ignore_eos: bool) -> None:
    def rule(_: int, text: Sequence[int]) -> NDArray:
        logits = certain(ord("a"))
        logits[[98, 99, 256]] = 12, 11, 10
        return logits

    config = GenerationConfig(
        GREEDY, stop_token_ids=(98, 99), ignore_eos=ignore_eos, min_tokens=3, max_tokens=9
    )
    events = list(generate(ScriptedDecoder(rule), BYTES, [65], config))
    before = [256] * 3 if ignore_eos else [97] * 3
    assert [event.token_id for event in events] == [*before, None]
    assert events[-1].finish_reason == "stop"


@pytest.mark.parametrize("wrong", [-1, 257])
def test_a_stop_token_must_be_one_of_the_vocabulary(wrong: int) -> None:
    with pytest.raises(UsageError, match="stop_token_ids must be for token ids from 0 to 256"):
        run("a", stop_token_ids=(97, wrong))


def test_no_step_is_computed_for_a_token_that_is_not_wanted() -> None:
    decoder = ScriptedDecoder(script(b"abc"))
    list(generate(decoder, BYTES, [65], GenerationConfig(GREEDY, max_tokens=3)))
    assert [[chunk.ids for chunk in chunks] for chunks in decoder.reads] == [[[65]], [[97]], [[98]]]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one. two. three", (". t",), "one"),
        ("one. two. three", ("three", "two"), "one. "),
        ("aaab", ("aab",), "a"),
        ("abcabd", ("abd",), "abc"),
        ("x\n\ny", ("\n\n",), "x"),
        ("stop", ("stop",), ""),
        ("héllo wörld", ("ö",), "héllo w"),
    ],
)
def test_stop_strings_that_span_tokens_are_never_shown(
    text: str, stop: tuple[str, ...], shown: str
) -> None:
    events = run(text, stop=stop)
    assert text_of(events) == shown
    assert events[-1].finish_reason == "stop"


def test_what_only_began_a_stop_string_is_shown_in_the_end() -> None:
    events = run("the en", stop=("end",))
    assert text_of(events) == "the en"
    assert events[-1].finish_reason == "length"


def test_half_a_character_is_held_back_and_flushed_as_a_replacement() -> None:
    events = run("é🙂".encode()[:-1])
    assert [event.text for event in events] == ["", "é", "", "", "\ufffd"]


def test_samples_end_on_their_own() -> None:
    decoder = ScriptedDecoder(script([*b"ab", 256], b"abcd"))
    config = GenerationConfig(GREEDY, max_tokens=4, samples=2)
    events = list(generate(decoder, BYTES, [65], config))
    assert [text_of(events, i) for i in (0, 1)] == ["ab", "abcd"]
    assert [event.finish_reason for event in events if event.finish_reason] == ["eos", "length"]


def test_a_full_context_slides_in_blocks() -> None:
    decoder = ScriptedDecoder(lambda _, text: certain(ord("x")), context_length=16)
    config = GenerationConfig(GREEDY, max_tokens=40)
    list(generate(decoder, BYTES, list(b"prompt"), config))
    prompts = [chunk.ids for [chunk] in decoder.reads if chunk.start == 0]
    assert [len(ids) for ids in prompts] == [6, 12, 12, 12, 12, 12, 12]
    assert bytes(prompts[1]) == b"t" + b"x" * 11  # the newest of what was there
    # 40 tokens: the cost stays flat, three prefilled tokens for each generated one.
    assert sum(map(len, prompts[1:])) <= 3 * 40


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"samples": 0}, {"seed": -1}, {"stop": ("",)}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        GenerationConfig(**wrong)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        next(generate(ScriptedDecoder(script(b"")), BYTES, [], GenerationConfig()))


# From here on with a real decoder.


def sample_ids(
    make: MakeDecoder, tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(config.samples)]
    for event in generate(make(tokens=2048), tokenizer, prompt, config):
        if event.token_id is not None:
            rows[event.sample].append(event.token_id)
    return rows


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
def test_a_hundred_greedy_tokens_equal_those_of_transformers(
    kind: str, qkv_bias: bool, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = ModelConfig(300, context_length=128, emb_dim=48, n_heads=4, n_layers=3)
    model = random_model(replace(config, qkv_bias=qkv_bias))
    checkpoint.save(model, tmp_path, end_of_text=0, dtype=torch.float32)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    prompt = tiny_tokenizer.encode("ROMEO: But")
    expected = theirs.generate(
        torch.tensor([prompt]),
        max_new_tokens=100,
        min_new_tokens=100,
        do_sample=False,
        pad_token_id=0,
    )[0, len(prompt) :]
    greedy = GenerationConfig(GREEDY, max_tokens=100, ignore_eos=True)
    assert sample_ids(decoders(kind, tmp_path), tiny_tokenizer, prompt, greedy) == [
        expected.tolist()
    ]
    assert len(set(expected.tolist())) > 10  # not one token over and over


SAMPLED = SamplingConfig(temperature=1.0, top_p=0.95)


def test_a_seed_repeats_and_another_does_not(make: MakeDecoder, tiny_tokenizer: Tokenizer) -> None:
    def ids(seed: int) -> list[int]:
        config = GenerationConfig(SAMPLED, max_tokens=25, seed=seed, ignore_eos=True)
        return sample_ids(make, tiny_tokenizer, [5, 6], config)[0]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


def test_a_sample_does_not_depend_on_how_many_are_asked_for(
    make: MakeDecoder, tiny_tokenizer: Tokenizer
) -> None:
    def ids(samples: int) -> list[list[int]]:
        config = GenerationConfig(SAMPLED, max_tokens=25, seed=3, samples=samples, ignore_eos=True)
        return sample_ids(make, tiny_tokenizer, [5, 6, 7], config)

    alone, three, five = ids(1), ids(3), ids(5)
    assert alone == three[:1] == five[:1]
    assert three == five[:3]
    assert len({tuple(row) for row in five}) == 5


@pytest.mark.parametrize("samples", [1, 2])
def test_sliding_gives_the_logits_of_the_text_that_remains(
    make: MakeDecoder, tiny_model: GPT2, tiny_tokenizer: Tokenizer, samples: int
) -> None:
    """Every token past the window is the model's own choice given the window alone."""
    prompt = tiny_tokenizer.encode("It is the east")
    config = GenerationConfig(GREEDY, max_tokens=70, samples=samples, ignore_eos=True)
    context = tiny_model.config.context_length
    generated = sample_ids(make, tiny_tokenizer, prompt, config)[-1]
    window = list(prompt)
    for token_id in generated:
        if len(window) > context:
            window = slide(window, context)
        assert tiny_model(torch.tensor([window]))[0, -1].argmax().item() == token_id
        window.append(token_id)


def test_repetition_penalty_counts_prompt_and_generated_tokens(
    make: MakeDecoder, tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory).eval()
    prompt = tiny_tokenizer.encode("Juliet is the sun")
    expected = theirs.generate(
        torch.tensor([prompt]),
        max_new_tokens=15,
        min_new_tokens=15,
        do_sample=False,
        repetition_penalty=1.7,
        pad_token_id=0,
    )[0, len(prompt) :]
    sampling = SamplingConfig(temperature=0, repetition_penalty=1.7)
    config = GenerationConfig(sampling, max_tokens=15, ignore_eos=True)
    assert sample_ids(make, tiny_tokenizer, prompt, config)[0] == expected.tolist()


def test_prompt_logprobs_are_those_of_transformers(
    make: MakeDecoder, tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory).eval()
    prompt = [5, 6, 7, 5, 250, 0, 31]
    with torch.no_grad():
        expected = torch.log_softmax(theirs(torch.tensor([prompt])).logits[0], dim=-1)
    sampling = SamplingConfig(temperature=0.5, top_k=2)
    config = GenerationConfig(sampling, samples=2, prompt_logprobs=3, bias={6: 5.0})
    events = list(generate(make(tokens=256), tiny_tokenizer, prompt, config))
    [(sample, found)] = [(e.sample, e.prompt_logprobs) for e in events if e.prompt_logprobs]
    assert sample == 0
    assert found[0] is None
    assert [token.id for token in found[1:] if token] == prompt[1:]
    for token, row in zip(found[1:], expected[:-1], strict=True):
        assert token is not None
        best = torch.topk(row, 3)
        assert [other.id for other in token.top] == best.indices.tolist()
        assert np.allclose([other.logprob for other in token.top], best.values, atol=1e-4)
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.token == tiny_tokenizer.decode([token.id])


@pytest.mark.parametrize("spare", [0, 1])
def test_a_prompt_that_fills_the_window_has_its_logprobs(
    make: MakeDecoder, tiny_config: ModelConfig, tiny_tokenizer: Tokenizer, spare: int
) -> None:
    length = tiny_config.context_length - spare
    config = GenerationConfig(GREEDY, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    [event] = generate(make(), tiny_tokenizer, [i % 200 for i in range(length)], config)
    assert event.prompt_logprobs is not None
    assert len(event.prompt_logprobs) == length


def test_a_prompt_of_one_token_has_no_logprob(make: MakeDecoder, tiny_tokenizer: Tokenizer) -> None:
    config = GenerationConfig(GREEDY, max_tokens=2, prompt_logprobs=1, ignore_eos=True)
    first, second = generate(make(), tiny_tokenizer, [5], config)
    assert (first.prompt_logprobs, second.prompt_logprobs) == ((None,), None)


def test_logprobs_are_those_of_the_model_before_any_rule(
    make: MakeDecoder, tiny_model: GPT2, tiny_tokenizer: Tokenizer
) -> None:
    sampling = SamplingConfig(temperature=0.5, top_k=2)
    config = GenerationConfig(sampling, max_tokens=6, samples=2, logprobs=3, ignore_eos=True)
    prompt = [5, 6, 7]
    texts: list[list[int]] = [list(prompt), list(prompt)]
    for event in generate(make(tokens=256), tiny_tokenizer, prompt, config):
        assert event.logprob is not None
        text = texts[event.sample]
        expected = torch.log_softmax(tiny_model(torch.tensor([text]))[0, -1], dim=-1)
        best = torch.topk(expected, 3)
        assert [token.id for token in event.logprob.top] == best.indices.tolist()
        assert np.allclose([t.logprob for t in event.logprob.top], best.values, atol=1e-4)
        assert event.logprob.id == event.token_id
        assert event.logprob.logprob == pytest.approx(float(expected[event.token_id]), abs=1e-4)
        assert event.logprob.token == tiny_tokenizer.decode([event.logprob.id])
        text.append(event.logprob.id)
