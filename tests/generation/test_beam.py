"""Beam search against transformers', on every decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import decoders
from transformers import GPT2LMHeadModel

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.generation import beam, loop
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.text.tokenizer import Tokenizer

GREEDY = SamplingConfig(temperature=0)


def texts(
    kind: str, directory: Path, tokenizer: Tokenizer, prompt: list[int], **settings: Any
) -> list[list[int]]:
    config = GenerationConfig(GREEDY, **settings)
    decoder = decoders(kind, directory)(tokens=2048)
    found: list[list[int]] = [[] for _ in range(config.samples)]
    for event in beam.generate(decoder, tokenizer, prompt, config):
        if event.token_id is not None:
            found[event.sample].append(event.token_id)
    return found


@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_the_beams_are_those_of_transformers(
    kind: str, length_penalty: float, tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory).eval()
    prompt = tiny_tokenizer.encode("ROMEO: But")
    # A token that the model likes stands for the end, so that beams do end.
    for eos in (None, 17, 42, 99, 203, 250):
        for beams, count in ((4, 3), (1, 1)):
            expected = theirs.generate(
                torch.tensor([prompt]),
                num_beams=beams,
                num_return_sequences=count,
                max_new_tokens=12,
                do_sample=False,
                length_penalty=length_penalty,
                eos_token_id=eos,
                pad_token_id=299,
            )
            if beams == 1:  # transformers' greedy search
                want = [_until(expected[0, len(prompt) :].tolist(), eos)]
            else:
                want = [_until(row[len(prompt) :].tolist(), eos) for row in expected]
            config = GenerationConfig(
                GREEDY, max_tokens=12, beams=beams, samples=count, length_penalty=length_penalty
            )
            decoder = decoders(kind, tiny_directory)(tokens=2048)
            found = beam.search(decoder, prompt, config, eos)
            assert [_until(list(b.ids), eos) for b in found[:count]] == want


def _until(ids: list[int], eos: int | None) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids


def test_more_beams_find_a_text_at_least_as_probable(
    tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    def best(beams: int) -> float:
        config = GenerationConfig(GREEDY, max_tokens=6, beams=beams)
        decoder = decoders("numpy", tiny_directory)(tokens=2048)
        return beam.search(decoder, [1, 2], config, None)[0].score

    assert best(1) <= best(20)


def test_beams_go_past_a_full_context(tiny_directory: Path, tiny_tokenizer: Tokenizer) -> None:
    settings: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
    (alone,) = texts("numpy", tiny_directory, tiny_tokenizer, [1, 2], beams=1, **settings)
    greedy = loop.generate(
        decoders("numpy", tiny_directory)(),
        tiny_tokenizer,
        [1, 2],
        GenerationConfig(GREEDY, **settings),
    )
    assert alone == [event.token_id for event in greedy]
    (best,) = texts("numpy", tiny_directory, tiny_tokenizer, [1, 2], beams=3, **settings)
    assert len(best) == 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beams": 0}, "beams must be at least 1"),
        ({"beams": 2, "samples": 3}, "2 beams give at most 2 samples"),
        ({"beams": 2, "sampling": SamplingConfig()}, "beams and temperature cannot go together"),
        ({"beams": 2, "stop": ("a",)}, "beams and stop cannot"),
        ({"beams": 2, "length_penalty": float("nan")}, "length_penalty must be a number"),
    ],
)
def test_what_does_not_go_with_beams_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GenerationConfig(**{"sampling": GREEDY, **wrong})
