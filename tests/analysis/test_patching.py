"""Activation patching against transformers, patched one activation at a time with hooks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

import gpt2cli
from gpt2cli.analysis import patching
from gpt2cli.analysis.patching import Patching
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer

CLEAN = [40, 41, 42, 43, 44, 45]
CORRUPTED = [40, 41, 99, 43, 44, 45]
ANSWER, VERSUS = 17, 250


@pytest.fixture(scope="module")
def theirs(tiny_directory: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(tiny_directory, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def found(tiny_model: GPT2, tiny_tokenizer: Tokenizer) -> Patching:
    return patching.patch(
        tiny_model, tiny_tokenizer, CLEAN, CORRUPTED, answer=ANSWER, versus=VERSUS
    )


def difference(theirs: GPT2LMHeadModel, ids: list[int]) -> float:
    with torch.inference_mode():
        logits = theirs(torch.tensor([ids])).logits[0, -1]
    return float(logits[ANSWER] - logits[VERSUS])


def patched(
    theirs: GPT2LMHeadModel, module: nn.Module, side: str, change: Callable[[Tensor, Tensor], None]
) -> float:
    """How much is restored when `change` writes clean activations over the corrupted ones."""
    kept: list[Tensor] = []

    def hook(_: nn.Module, given: Any, output: Any = None) -> Any:
        x = given[0] if output is None else output[0] if isinstance(output, tuple) else output
        if not kept:
            kept.append(x.clone())
            return None
        x = x.clone()
        change(x, kept[0])
        if output is None:
            return x, *given[1:]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    register = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
    handle = register(hook)
    difference(theirs, CLEAN)
    restored = difference(theirs, CORRUPTED)
    handle.remove()
    clean, corrupted = difference(theirs, CLEAN), difference(theirs, CORRUPTED)
    return (restored - corrupted) / (clean - corrupted)


@pytest.mark.parametrize("name", ["stream", "attention", "mlp"])
def test_a_map_by_position_is_that_of_patches_in_transformers(
    found: Patching, theirs: GPT2LMHeadModel, name: str
) -> None:
    def expected(layer: int, position: int) -> float:
        def change(x: Tensor, clean: Tensor) -> None:
            x[:, position] = clean[:, position]

        block = theirs.transformer.h[layer]
        module, side = {
            "stream": (block, "in"),
            "attention": (block.attn, "out"),
            "mlp": (block.mlp, "out"),
        }[name]
        return patched(theirs, module, side, change)

    reference = [[expected(layer, t) for t in range(6)] for layer in range(2)]
    assert np.allclose(getattr(found, name), reference, atol=1e-4)


def test_a_map_by_head_is_that_of_patches_in_transformers(
    found: Patching, theirs: GPT2LMHeadModel
) -> None:
    def expected(layer: int, head: int) -> float:
        def change(x: Tensor, clean: Tensor) -> None:
            x[..., 8 * head : 8 * head + 8] = clean[..., 8 * head : 8 * head + 8]

        return patched(theirs, theirs.transformer.h[layer].attn.c_proj, "in", change)

    reference = [[expected(layer, head) for head in range(3)] for layer in range(2)]
    assert np.allclose(found.heads, reference, atol=1e-4)


def test_differences_are_those_of_transformers(found: Patching, theirs: GPT2LMHeadModel) -> None:
    answers = found.answers
    assert answers.clean == pytest.approx(difference(theirs, CLEAN), abs=1e-4)
    assert answers.corrupted == pytest.approx(difference(theirs, CORRUPTED), abs=1e-4)
    assert (answers.answer.id, answers.versus.id) == (ANSWER, VERSUS)


def test_the_one_token_that_differs_carries_all_at_first(found: Patching) -> None:
    assert found.stream is not None
    assert found.stream[0] == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-5)
    for name in ("attention", "mlp", "stream"):
        assert not getattr(found, name)[:, :2].any()  # before the prompts differ


def test_answers_are_by_default_what_either_prompt_makes_most_probable(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer
) -> None:
    best = [
        int(patching.predictions(tiny_model, tiny_tokenizer, ids).argmax())
        for ids in (CLEAN, CORRUPTED)
    ]
    assert best[0] != best[1]
    found = patching.patch(tiny_model, tiny_tokenizer, CLEAN, CORRUPTED, maps=["heads"])
    assert [found.answers.answer.id, found.answers.versus.id] == best
    assert found.answers.clean > 0 > found.answers.corrupted
    data = json.loads(json.dumps(found.as_dict()))
    assert set(data) == {"clean", "corrupted", "answers", "heads"}
    assert np.shape(data["heads"]) == (2, 3)


def test_every_patch_is_counted(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are read a few at a time, with the same result."""
    whole = patching.patch(tiny_model, tiny_tokenizer, CLEAN, CORRUPTED)
    monkeypatch.setattr(patching, "_BATCH", 12)
    done: list[int] = []
    parts = patching.patch(tiny_model, tiny_tokenizer, CLEAN, CORRUPTED, advance=done.append)
    assert sum(done) == patching.count(tiny_model, 4) == 3 * 2 * 4 + 2 * 3
    for name in patching.MAPS:
        assert np.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5)


@pytest.mark.parametrize(
    ("clean", "corrupted", "answers", "message"),
    [
        (CLEAN, CORRUPTED[:-1], {}, "both prompts must have as many tokens, and have 6 and 5: "),
        (CLEAN, CLEAN, {}, "the prompts are the same"),
        ([1] * 33, [2] * 33, {}, "the prompts have 33 tokens, the context 32"),
        (CLEAN, CORRUPTED, {"answer": 5, "versus": 5}, "answer and versus are both"),
    ],
)
def test_what_cannot_be_compared_is_told(
    tiny_model: GPT2,
    tiny_tokenizer: Tokenizer,
    clean: list[int],
    corrupted: list[int],
    answers: dict[str, int],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        patching.patch(tiny_model, tiny_tokenizer, clean, corrupted, **answers)


def test_prompts_that_decide_nothing_are_told(tiny_model: GPT2, tiny_tokenizer: Tokenizer) -> None:
    """A model whose vocabulary says the same of both answers."""
    same = copy.deepcopy(tiny_model)
    same.token_embedding.weight[VERSUS] = same.token_embedding.weight[ANSWER]
    with pytest.raises(UsageError, match="make no difference to"):
        patching.patch(same, tiny_tokenizer, CLEAN, CORRUPTED, answer=ANSWER, versus=VERSUS)


def test_a_forgotten_space_is_noticed() -> None:
    model = gpt2cli.load("bard")
    network, tokenizer = model.network(), model.tokenizer
    ids = model.encode("I told the woman that")
    he, spaced = tokenizer.one("he"), tokenizer.one(" he")
    assert patching.spaced(network, tokenizer, ids, he) == spaced
    assert patching.spaced(network, tokenizer, ids, spaced) is None
    assert patching.spaced(network, tokenizer, ids, tokenizer.one("\n")) is None
