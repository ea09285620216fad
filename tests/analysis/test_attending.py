"""One head from near, and maps of all heads, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_model
from transformers import GPT2LMHeadModel

from gpt2cli.analysis import attending
from gpt2cli.arrays import NDArray
from gpt2cli.config.interventions import Interventions
from gpt2cli.config.model import ModelConfig
from gpt2cli.model import interventions
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.trace import trace
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

IDS = torch.randint(0, 300, (21,), generator=torch.Generator().manual_seed(2)).tolist()
LAYER, HEAD, POSITION, D = 1, 2, 13, 8
OWN = slice(HEAD * D, (HEAD + 1) * D)


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig) -> GPT2:
    return random_model(tiny_config, seed=3)


@pytest.fixture(scope="module")
def theirs(model: GPT2, tmp_path_factory: pytest.TempPathFactory) -> GPT2LMHeadModel:
    directory = tmp_path_factory.mktemp("theirs")
    checkpoint.save(model, directory, end_of_text=0, dtype=torch.float32)
    return GPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def passed(theirs: GPT2LMHeadModel) -> dict[str, Any]:
    """What transformers computes in the layer: q, k and v side by side, weights, what is mixed."""
    found: dict[str, Any] = {}
    attention = theirs.transformer.h[LAYER].attn
    hooks = [
        attention.c_attn.register_forward_hook(lambda *given: found.update(qkv=given[2][0])),
        attention.c_proj.register_forward_pre_hook(
            lambda *given: found.update(mixed=given[1][0][0])
        ),
    ]
    with torch.inference_mode():
        output = theirs(torch.tensor([IDS]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    found["weights"] = [attention[0].numpy() for attention in output.attentions]
    found["q"], found["k"], found["v"] = (
        part[:, OWN].numpy() for part in found["qkv"].chunk(3, dim=-1)
    )
    return found


@pytest.fixture(scope="module")
def seen(model: GPT2) -> attending.Head:
    return attending.head(model, IDS, LAYER, HEAD, POSITION)


def close(ours: Any, reference: Any) -> bool:
    return bool(np.allclose(np.asarray(ours), np.asarray(reference), atol=2e-5, rtol=1e-4))


def test_queries_keys_and_values_are_those_of_transformers(
    seen: attending.Head, passed: dict[str, Any]
) -> None:
    for name in "qkv":
        assert close(getattr(seen, name), passed[name][POSITION])


def test_scores_are_products_with_all_keys_and_weights_their_softmax(
    seen: attending.Head, passed: dict[str, Any]
) -> None:
    assert seen.scores.shape == seen.weights.shape == (len(IDS),)
    assert close(seen.scores, passed["k"] @ passed["q"][POSITION] / np.sqrt(D))
    assert close(seen.weights, passed["weights"][LAYER][HEAD, POSITION])
    assert not seen.weights[POSITION + 1 :].any()
    exponentials = np.exp(seen.scores[: POSITION + 1])
    assert close(seen.weights[: POSITION + 1], exponentials / exponentials.sum())
    assert close(seen.map, passed["weights"][LAYER][HEAD])


def test_values_and_what_is_added_have_the_lengths_of_theirs(
    theirs: GPT2LMHeadModel, seen: attending.Head, passed: dict[str, Any]
) -> None:
    weighted = passed["weights"][LAYER][HEAD, POSITION][:, None] * passed["v"]
    assert close(seen.values, np.linalg.norm(weighted, axis=-1))
    rows = theirs.transformer.h[LAYER].attn.c_proj.weight.detach().numpy()[OWN]
    added = passed["mixed"][POSITION, OWN].numpy() @ rows
    assert seen.output_norm == pytest.approx(np.linalg.norm(added), abs=1e-4)


def test_what_goes_into_the_layer_may_be_known_already(model: GPT2, seen: attending.Head) -> None:
    stream = trace(model, IDS, len(IDS)).stream[2 * LAYER]
    again = attending.head(model, IDS, LAYER, HEAD, POSITION, stream=stream)
    for name in ("scores", "weights", "values", "q", "k", "v", "map", "output_norm"):
        assert close(getattr(again, name), getattr(seen, name))


@pytest.mark.parametrize("part", [f"{LAYER}.{HEAD}", f"attention.{LAYER}", f"layer.{LAYER}"])
def test_a_head_that_is_switched_off_attends_and_adds_nothing(
    model: GPT2, tiny_tokenizer: Tokenizer, seen: attending.Head, part: str
) -> None:
    edits = interventions.edits(model, Interventions.of([part]), tiny_tokenizer)
    off = attending.head(model, IDS, LAYER, HEAD, POSITION, edits)
    assert close(off.weights, seen.weights)
    assert off.output_norm == 0
    other = attending.head(model, IDS, LAYER, HEAD - 1, POSITION, edits)
    assert (other.output_norm > 0) == part[0].isdigit()


def test_a_hidden_position_gives_its_weight_to_others(model: GPT2) -> None:
    off = attending.head(model, IDS, LAYER, HEAD, POSITION, Edits(unseen=[4]))
    assert off.weights[4] == 0
    assert off.map[4, 4] > 0
    assert off.weights.sum() == pytest.approx(1, abs=1e-5)


def means(weights: NDArray, block: int) -> NDArray:
    T = len(weights)
    starts = range(0, T, block)
    return np.array(
        [[weights[i : i + block, j : j + block].mean() for j in starts] for i in starts]
    )


@pytest.mark.parametrize(("most", "block"), [(64, 1), (21, 1), (20, 2), (8, 3), (1, 21)])
def test_maps_of_long_texts_are_means_of_blocks(
    model: GPT2, passed: dict[str, Any], most: int, block: int
) -> None:
    kept = trace(model, IDS, len(IDS)).attention
    for attention in (None, kept):
        found = attending.maps(model, IDS, most, attention=attention)
        assert found.block == block
        for layer in range(2):
            for head in range(3):
                expected = means(passed["weights"][layer][head], block)
                assert found.weights[layer, head].shape == expected.shape
                assert close(found.weights[layer, head], expected)


def test_maps_are_made_layer_by_layer(model: GPT2) -> None:
    done: list[int] = []
    attending.maps(model, IDS, 8, advance=done.append)
    assert done == [1, 1]
