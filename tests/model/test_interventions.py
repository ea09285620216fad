"""Interventions against transformers' model with hooks on its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import random_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gpt2cli.config.interventions import Interventions
from gpt2cli.config.model import ModelConfig
from gpt2cli.model import interventions, trace
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.weights import checkpoint

IDS = torch.randint(0, 300, (20,), generator=torch.Generator().manual_seed(1)).tolist()
OTHER = torch.randint(0, 300, (80,), generator=torch.Generator().manual_seed(2)).tolist()
BEGINNING = 299
D = 8  # width of a head


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig) -> GPT2:
    return random_model(replace(tiny_config, n_layers=3))


@pytest.fixture(scope="module")
def theirs(model: GPT2, tmp_path_factory: pytest.TempPathFactory) -> GPT2LMHeadModel:
    directory = tmp_path_factory.mktemp("theirs")
    checkpoint.save(model, directory, end_of_text=0, dtype=torch.float32)
    return GPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager").eval()


class Numbers:
    """Texts of these tests are numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def beginning(self) -> int:
        return BEGINNING


NUMBERS = Numbers()


def written(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def plan(*ablate: str, **more: Any) -> Interventions:
    return Interventions.of(ablate, **more)


def ours(model: GPT2, changes: Interventions, ids: Sequence[int] = IDS) -> Tensor:
    """Logits after each token. (T, V)"""
    edits = interventions.edits(model, changes, NUMBERS)
    with torch.inference_mode():
        return model(torch.tensor([ids]), edits=edits)[0]


Hook = Callable[[Tensor], Tensor]


@contextmanager
def hooked(into: dict[nn.Module, Hook], out_of: dict[nn.Module, Hook]) -> Iterator[None]:
    """Modules of theirs whose input or output is changed."""

    def before(change: Hook) -> Any:
        return lambda module, inputs: (change(inputs[0]), *inputs[1:])

    def after(change: Hook) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return change(output[0]), *output[1:]
            return change(output)

        return hook

    handles = [m.register_forward_pre_hook(before(change)) for m, change in into.items()]
    handles += [m.register_forward_hook(after(change)) for m, change in out_of.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(theirs: GPT2LMHeadModel, ids: Sequence[int] = IDS, **more: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = theirs(torch.tensor([ids]), **more).logits[0]
    return found


def seen(theirs: GPT2LMHeadModel, module: nn.Module, ids: Sequence[int], side: str) -> Tensor:
    """What goes in or out of a module of theirs. (T, C)"""
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x[0])
        return x

    with hooked({module: keep} if side == "in" else {}, {module: keep} if side == "out" else {}):
        logits(theirs, ids)
    return kept[0]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-5)


def without_head(head: int, value: Tensor | float = 0.0) -> Hook:
    def hook(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., D * head : D * head + D] = value
        return x

    return hook


# What is switched off.


def test_nothing_is_changed_without_a_change(model: GPT2, theirs: GPT2LMHeadModel) -> None:
    assert close(ours(model, plan()), logits(theirs))


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("head", [0, 2])
def test_a_head_switched_off_is_zeros_before_their_output_matrix(
    model: GPT2, theirs: GPT2LMHeadModel, layer: int, head: int
) -> None:
    with hooked({theirs.transformer.h[layer].attn.c_proj: without_head(head)}, {}):
        expected = logits(theirs)
    found = ours(model, plan(f"{layer}.{head}"))
    assert close(found, expected)
    assert not close(found, logits(theirs))


def test_several_parts_are_switched_off_together(model: GPT2, theirs: GPT2LMHeadModel) -> None:
    h = theirs.transformer.h
    both = {h[1].attn.c_proj: lambda x: without_head(0)(without_head(1)(x))}
    with hooked(both, {h[0].mlp: torch.zeros_like}):
        expected = logits(theirs)
    assert close(ours(model, plan("1.0", "1.1", "mlp.0")), expected)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_attention_feed_forward_and_both(model: GPT2, theirs: GPT2LMHeadModel, layer: int) -> None:
    block = theirs.transformer.h[layer]
    parts: dict[str, dict[nn.Module, Hook]] = {
        f"attention.{layer}": {block.attn: torch.zeros_like},
        f"mlp.{layer}": {block.mlp: torch.zeros_like},
    }
    parts[f"layer.{layer}"] = parts[f"attention.{layer}"] | parts[f"mlp.{layer}"]
    for name, zeros in parts.items():
        with hooked({}, zeros):
            assert close(ours(model, plan(name)), logits(theirs)), name


def test_a_layer_switched_off_hands_its_stream_on(model: GPT2) -> None:
    traced = trace.trace(model, IDS, 20, interventions.edits(model, plan("layer.1"), NUMBERS))
    assert torch.equal(traced.stream[4], traced.stream[2])


def test_the_mean_is_that_over_all_tokens_of_the_reference(
    model: GPT2, theirs: GPT2LMHeadModel
) -> None:
    """The reference is longer than the context of 32, and is read in pieces of that length."""
    block = theirs.transformer.h[1]
    pieces = [OTHER[i : i + 32] for i in range(0, 80, 32)]

    def mean(module: nn.Module, side: str) -> Tensor:
        return torch.cat([seen(theirs, module, piece, side) for piece in pieces]).mean(0)

    head = mean(block.attn.c_proj, "in")[D : 2 * D]
    attention, mlp = mean(block.attn, "out"), mean(block.mlp, "out")
    cases: dict[str, tuple[dict[nn.Module, Hook], dict[nn.Module, Hook]]] = {
        "1.1": ({block.attn.c_proj: without_head(1, head)}, {}),
        "attention.1": ({}, {block.attn: lambda x: attention.expand_as(x)}),
        "mlp.1": ({}, {block.mlp: lambda x: mlp.expand_as(x)}),
    }
    for name, hooks in cases.items():
        changes = plan(name, ablate_with="mean", reference=written(OTHER))
        with hooked(*hooks):
            expected = logits(theirs)
        assert close(ours(model, changes), expected), name
        assert not close(expected, logits(theirs)), name


def test_no_later_token_attends_to_a_hidden_position(model: GPT2, theirs: GPT2LMHeadModel) -> None:
    """Transformers takes a mask (1, 1, T, T) as it is; a token still attends to itself."""
    allowed = torch.ones(20, 20, dtype=torch.bool).tril()
    for position in (0, 7):
        allowed[position + 1 :, position] = False
    mask = torch.zeros(1, 1, 20, 20).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = logits(theirs, attention_mask=mask)
    changes = plan("position.0", "position.7")
    assert close(ours(model, changes), expected)
    assert not close(expected[1:], logits(theirs)[1:])
    edits = interventions.edits(model, changes, NUMBERS)
    weights = trace.trace(model, IDS, 20, edits).attention
    assert not weights[..., 8:, 7].any()
    assert weights[..., 7, 7].all()


# Steering.


def test_steering_adds_the_difference_of_two_streams(model: GPT2, theirs: GPT2LMHeadModel) -> None:
    block = theirs.transformer.h[1]
    towards, away = [7, 8, 9], [4]
    direction = (
        seen(theirs, block, [BEGINNING, *towards], "in")[-1]
        - seen(theirs, block, [BEGINNING, *away], "in")[-1]
    )

    def steer(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 5:] += 2.5 * direction
        return x

    with hooked({block: steer}, {}):
        expected = logits(theirs)
    one = {"towards": "7 8 9", "away": "4", "layer": 1, "strength": 2.5, "first": 5}
    found = ours(model, plan(steer=[one]))
    assert close(found, expected)
    assert close(found[:5], logits(theirs)[:5])
    assert not close(found[5:], logits(theirs)[5:])


def test_two_directions_add_up_and_opposite_ones_cancel(model: GPT2) -> None:
    one = {"towards": "7 8 9", "away": "4", "layer": 1}
    twice = ours(model, plan(steer=[one, one]))
    assert close(twice, ours(model, plan(steer=[one | {"strength": 2}])))
    opposite = {"towards": "4", "away": "7 8 9", "layer": 1}
    assert close(ours(model, plan(steer=[one, opposite])), ours(model, plan()))


# What is seen inside.


@pytest.mark.parametrize(
    "changes",
    [
        plan("1.1", "0.2"),
        plan("attention.1", "position.3"),
        plan("layer.2", "mlp.0", ablate_with="mean", reference=written(OTHER)),
        plan("attention.1", ablate_with="mean", reference=written(OTHER)),
        plan("1.0", steer=[{"towards": "7 8 9", "away": "4", "layer": 2, "strength": 3.0}]),
    ],
    ids=["heads", "attention", "means", "mean of attention", "steered"],
)
def test_a_trace_is_that_of_the_changed_run_and_its_parts_add_up(
    model: GPT2, changes: Interventions
) -> None:
    traced = trace.trace(model, IDS, 5, interventions.edits(model, changes, NUMBERS))
    expected = ours(model, changes)
    assert close(trace.lens(model, traced.stream[-1]), expected[-5:])
    split = trace.contributions(model, traced, 17)
    assert split.total == pytest.approx(expected[-1, 17].item(), abs=1e-4)
    assert sum(split.parts().values()) == pytest.approx(split.total, abs=1e-4)
    assert ("steering" in split.parts()) == bool(changes.steer)


def test_what_is_switched_off_contributes_nothing(model: GPT2) -> None:
    changes = plan("1.1", "attention.0", "mlp.2")
    traced = trace.trace(model, IDS, 5, interventions.edits(model, changes, NUMBERS))
    split = trace.contributions(model, traced, 17)
    zero = (split.heads[1, 1], *split.heads[0], split.attention_bias[0], split.feed_forward[2])
    assert not any(zero)
    assert split.heads[1, 0] != 0


def test_whatever_is_recorded_is_what_passes_their_modules(
    model: GPT2, theirs: GPT2LMHeadModel
) -> None:
    h = theirs.transformer.h[2]
    places = ("stream", "heads", "attention", "feed_forward")
    found = interventions.record(model, IDS, [(place, 2) for place in places])
    passed = [(h, "in"), (h.attn.c_proj, "in"), (h.attn, "out"), (h.mlp, "out")]
    for place, (module, side) in zip(places, passed, strict=True):
        assert close(found[place, 2], seen(theirs, module, IDS, side)), place
