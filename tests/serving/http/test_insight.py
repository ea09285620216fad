"""What the page is told of a model's inside, and what happens to those who do not wait for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import servers
from helpers import BARD_SIZE, Run, needs_engine
from servers import Answer

from gpt2cli.analysis import attending, effects, patching
from gpt2cli.analysis.heads import score_heads
from gpt2cli.api import LoadedModel, load
from gpt2cli.arrays import NDArray
from gpt2cli.config.interventions import Interventions
from gpt2cli.model import interventions, trace
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.serving import insight
from gpt2cli.serving.reference import Reference

TEXT = "O Romeo, Romeo! wherefore art thou"
PLAN = {"ablate": ["2.3", "mlp.1"], "ablate_with": "zero", "reference": None, "steer": []}
CLEAN, CORRUPTED = "I told the woman that", "I told the man that"
LONG = {"ablate": ["0.0"], "ablate_with": "mean", "reference": "a " * 20_000}
LAYERS, HEADS, CONTEXT = BARD_SIZE.n_layers, BARD_SIZE.n_heads, BARD_SIZE.context_length
Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def network(bard: LoadedModel) -> GPT2:
    return bard.network()


@pytest.fixture(scope="module")
def ids(bard: LoadedModel) -> list[int]:
    return bard.encode(TEXT)


@pytest.fixture(scope="module")
def edits(network: GPT2, bard: LoadedModel) -> Edits:
    return interventions.edits(network, Interventions.of(["2.3", "mlp.1"]), bard.tokenizer)


def array(packed: dict[str, Any]) -> NDArray:
    data = base64.b64decode(packed["data"], validate=True)
    return np.frombuffer(data, "<f4").reshape(packed["shape"])


def same(ours: Any, reference: Any) -> None:
    """Numbers within 1e-4, everything else equal."""
    if isinstance(reference, dict):
        assert set(ours) == set(reference)
        for name in reference:
            same(ours[name], reference[name])
    elif isinstance(reference, list):
        assert len(ours) == len(reference)
        for pair in zip(ours, reference, strict=True):
            same(*pair)
    elif isinstance(reference, float):
        assert ours == pytest.approx(reference, rel=1e-4, abs=1e-4)
    else:
        assert ours == reference


# The same numbers as everywhere.


@pytest.mark.parametrize("plan", [None, PLAN], ids=["as it is", "under a plan"])
def test_the_inside_of_a_token_is_what_inspect_says_of_the_text_up_to_it(
    look: Ask, run_main: Run, bard: LoadedModel, ids: list[int], plan: Any
) -> None:
    ablated = [word for part in (plan or {"ablate": []})["ablate"] for word in ("--ablate", part)]
    for position in (0, 5, len(ids) - 1):
        text = bard.tokenizer.decode(ids[: position + 1])
        told = ("--json", "--last", "1", "--token", ",", "--versus", "!", "--top", "7")
        done = run_main("inspect", text, "-m", "bard", *told, *ablated)
        expected = json.loads(done.stdout)
        more = {} if plan is None else {"plan": plan}
        token, versus = bard.tokenizer.one(","), bard.tokenizer.one("!")
        asked = {"prompt": ids, "position": position, "token": token, "versus": versus, "top": 7}
        found = look("inspect", **asked, **more).json
        row = found.pop("attention_row")
        own = [[head[0] for head in layer] for layer in expected["attention"]]
        before = [[head[0] for head in layer] for layer in expected["attention_before"]]
        same([[head[-1] for head in layer] for layer in row], [[w[0] for w in r] for r in own])
        same([[sum(head[:-1]) for head in layer] for layer in row], before)
        assert ("effect" in found) == (plan is not None)
        same(found, {name: expected[name] for name in found})
        assert set(found) == set(expected) - {
            *("attention", "attention_before", "prompt", "interventions"),
            *bard.facts(),
        }


def test_without_a_position_it_is_the_last_token_and_the_most_probable_next(
    look: Ask, ids: list[int]
) -> None:
    found = look("inspect", prompt=TEXT).json
    assert found["first"] == len(ids) - 1
    assert found["target"] == found["next"][0]
    assert len(found["next"]) == 10
    assert np.shape(found["attention_row"]) == (LAYERS, HEADS, len(ids))
    assert [len(layer) for layer in found["neurons"]] == [5] * LAYERS
    assert "versus" not in found
    assert [len(layer) for layer in look("inspect", prompt=TEXT, neurons=0).json["neurons"]] == (
        [0] * LAYERS
    )


def test_the_lens_is_that_of_inspect(look: Ask, run_main: Run) -> None:
    expected = json.loads(run_main("inspect", TEXT, "-m", "bard", "--json").stdout)["lens"]
    found = look("lens", prompt=TEXT).json
    assert found["first"] == 0
    assert found["texts"] == expected["texts"]
    same(found["probabilities"], expected["probabilities"])
    part = look("lens", prompt=TEXT, first=9, top=1).json
    assert part["first"] == 9
    assert part["ids"] == [[place[:1] for place in layer[9:]] for layer in found["ids"]]


def test_attention_is_that_of_inspect(look: Ask, run_main: Run, ids: list[int]) -> None:
    expected = json.loads(run_main("inspect", TEXT, "-m", "bard", "--json").stdout)["attention"]
    found = look("attention", prompt=ids).json
    assert (found["first"], found["block"]) == (0, 1)
    assert array(found) == pytest.approx(np.array(expected), abs=1e-5)


def test_one_head_is_what_the_library_says(
    look: Ask, network: GPT2, ids: list[int], edits: Edits
) -> None:
    for plan, changes in ((None, None), (PLAN, edits)):
        more = {} if plan is None else {"plan": plan}
        found = look("head", prompt=ids, layer=2, head=3, position=6, **more).json
        expected = attending.head(network, ids, 2, 3, 6, changes)
        for name in ("scores", "weights", "values", "q", "k", "v"):
            assert found[name] == pytest.approx(getattr(expected, name).tolist(), abs=1e-4)
        assert found["output_norm"] == pytest.approx(expected.output_norm, abs=1e-4)
        assert array(found["map"]) == pytest.approx(expected.map, abs=1e-5)
    assert found["output_norm"] == 0


def test_a_plan_changes_the_prediction_as_the_library_says(
    look: Ask, network: GPT2, bard: LoadedModel, ids: list[int], edits: Edits
) -> None:
    expected = effects.effect(network, bard.tokenizer, ids, edits, token=7, top=6).as_dict()
    same(look("effect", prompt=ids, plan=PLAN, token=7, top=6).json, expected)
    assert expected["kl"] > 0.01
    nothing = look("effect", prompt=ids, plan=PLAN | {"ablate": []}, token=7, top=6).json
    assert nothing["kl"] == 0
    assert all(token["before"] == token["after"] for token in nothing["tokens"])


def test_steering_and_means_are_those_of_the_library(
    look: Ask, network: GPT2, bard: LoadedModel, ids: list[int]
) -> None:
    steer = {"towards": " love", "away": " hate", "layer": 2, "strength": 2.0, "first": 3}
    plans = [{"steer": [steer]}, {"ablate": ["mlp.2"], "ablate_with": "mean", "reference": "a b"}]
    for plan in plans:
        changes = interventions.edits(network, Interventions.of(**plan), bard.tokenizer)
        expected = effects.effect(network, bard.tokenizer, ids, changes).as_dict()
        same(look("effect", prompt=ids, plan=plan).json, expected)
    # Without a reference the mean is that over the text.
    usual = look("effect", prompt=ids, plan=plans[1] | {"reference": None}).json
    over_text = look("effect", prompt=ids, plan=plans[1] | {"reference": TEXT}).json
    assert usual == over_text


def test_patches_tell_how_far_they_are_and_restore_what_the_library_says(
    look: Ask, network: GPT2, bard: LoadedModel
) -> None:
    *steps, last = look("patch", clean=CLEAN, corrupted=CORRUPTED).chunks
    clean, corrupted = bard.encode(CLEAN), bard.encode(CORRUPTED)
    expected = patching.patch(network, bard.tokenizer, clean, corrupted).as_dict()
    same(last["result"], expected)
    total = patching.count(network, len(clean) - 3)
    assert {step["of"] for step in steps} == {total}
    done = [step["done"] for step in steps]
    assert done == sorted(done)
    assert done[-1] == total


def test_some_maps_and_named_answers_are_patched_alone(look: Ask, bard: LoadedModel) -> None:
    answer, versus = bard.tokenizer.one(" she"), " he"
    named = {"answer": answer, "versus": versus, "maps": ["heads"]}
    result = look("patch", clean=CLEAN, corrupted=CORRUPTED, **named).chunks[-1]["result"]
    assert result["answers"]["answer"] == {"id": answer, "text": " she"}
    assert result["answers"]["versus"]["text"] == " he"
    assert np.shape(result["heads"]) == (LAYERS, HEADS)
    assert not {"stream", "attention", "mlp"} & set(result)


def test_heads_are_scored_as_the_command_scores_them(
    ask: Ask, network: GPT2, bard: LoadedModel
) -> None:
    found, again = ask("/page/v1/heads").json, ask("/page/v1/heads").json
    expected = score_heads(network, bard.tokenizer)
    same({name: found[name] for name in expected.as_dict()}, expected.as_dict())
    assert (found["seed"], found["least"]) == (0, 0.4)
    same(found["heads"], expected.named(0.4))
    assert again == found


def test_tokens_that_are_parts_of_characters_have_their_bytes(look: Ask, bard: LoadedModel) -> None:
    ids = bard.encode("é漢")
    for position, token in enumerate(ids):
        [found] = look("inspect", prompt=ids, position=position).json["tokens"]
        data = bard.tokenizer.decode_bytes([token])
        if "bytes" in found:
            assert base64.b64decode(found["bytes"]) == data
        else:
            assert found["text"].encode() == data
    assert len(ids) > 2  # or none would be a part


# Long texts and large models.


def test_a_long_text_is_summarised_and_says_so(look: Ask, network: GPT2) -> None:
    long = list(range(200, 200 + CONTEXT))
    block = -(-len(long) // insight.DRAWN)
    found = look("attention", prompt=long).json
    assert found["block"] == block > 1
    expected = attending.maps(network, long, insight.DRAWN).weights
    assert array(found) == pytest.approx(expected, abs=1e-5)
    lens = look("lens", prompt=long).json
    assert lens["first"] == len(long) - insight.DRAWN
    assert len(lens["ids"][0]) == insight.DRAWN
    head = look("head", prompt=long, layer=0, head=0).json
    assert array(head["map"]).shape == (len(long), len(long))


def test_what_is_too_large_to_keep_is_the_same(
    look: Ask, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[tuple[str, dict[str, Any]]] = [
        ("inspect", {"position": 6, "plan": PLAN}),
        ("lens", {"first": 2}),
        ("lens", {"first": 2, "plan": PLAN}),
        ("head", {"layer": 3, "head": 1, "plan": PLAN}),
        ("effect", {"plan": PLAN}),
    ]
    kept = [look(name, prompt=ids, **more).json for name, more in questions]
    maps = look("attention", prompt=ids, plan=PLAN).json
    monkeypatch.setattr(insight, "MOST_KEPT", 0)
    for (name, more), expected in zip(questions, kept, strict=True):
        found = look(name, prompt=ids, **more).json
        if name == "head":
            assert array(found.pop("map")) == pytest.approx(array(expected.pop("map")), abs=1e-5)
        same(found, expected)
    assert array(look("attention", prompt=ids, plan=PLAN).json) == pytest.approx(
        array(maps), abs=1e-5
    )


def test_no_more_traces_are_kept_than_there_is_room_for(
    bard: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = insight.Insight(bard, Reference(bard))
    monkeypatch.setattr(insight, "MOST_KEPT", 3 * found._bytes(8))
    for begin in range(10):
        found.attention({"prompt": list(range(begin, begin + 8))}, lambda _: None)
        assert found._held <= insight.MOST_KEPT
    held = [ids[0] for ids, _ in found._traces]
    assert held == [7, 8, 9]
    trace = next(iter(found._traces.values()))
    tensors = trace.stream, trace.added, trace.attention, trace.mixed, trace.steered
    assert sum(t.nbytes for t in tensors) <= found._bytes(8)


# Wrong questions.

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("inspect", {}, "prompt must be a text or a list of token ids"),
    ("inspect", {"prompt": [5000]}, "a prompt of token ids has whole numbers from 0"),
    ("inspect", {"prompt": [5] * (CONTEXT + 1)}, f"tokens, the context {CONTEXT}"),
    ("inspect", {"prompt": "a", "position": 1}, "position must be a whole number from 0 to 0"),
    ("inspect", {"prompt": "a", "position": -1}, "position must be a whole number"),
    ("inspect", {"prompt": "a", "token": "not one token"}, "tokens, not one"),
    ("inspect", {"prompt": "a", "versus": 10**9}, "versus must be a token's text or id"),
    ("inspect", {"prompt": "a", "top": 0}, "top must be a whole number from 1"),
    ("inspect", {"prompt": "a", "neurons": 101}, "neurons must be a whole number from 0 to 100"),
    ("inspect", {"prompt": "a", "layer": 1}, "unknown field 'layer'"),
    ("lens", {"prompt": "a", "first": 1}, "first must be a whole number from 0 to 0"),
    ("lens", {"prompt": "a", "top": 21}, "top must be a whole number from 1 to 20"),
    ("head", {"prompt": "a", "head": 0}, "layer must be a whole number from 0 to 3, not None"),
    ("head", {"prompt": "a", "layer": 0, "head": 4}, "head must be a whole number from 0 to 3"),
    ("effect", {"prompt": "a", "plan": {"ablate": ["4.0"]}}, "layers are 0 to 3"),
    ("effect", {"prompt": "a", "plan": {"ablate": ["x"]}}, "cannot ablate 'x'"),
    ("effect", {"prompt": "a", "plan": {"ablate": ["position.1"]}}, "the text has 1 token"),
    ("effect", {"prompt": "a", "plan": {"ablate": "0.0"}}, "ablate must be a list"),
    ("effect", {"prompt": "a", "plan": {"ablte": []}}, "did you mean 'ablate'"),
    ("effect", {"prompt": "a", "plan": []}, "plan must be an object"),
    ("effect", {"prompt": "a", "plan": {"steer": [{}] * 17}}, "a list of up to 16 objects"),
    ("effect", {"prompt": "a", "plan": {"steer": [{"towards": "a"}]}}, "missing away, layer"),
    (
        "effect",
        {
            "prompt": "a",
            "plan": {"ablate": ["0.0"], "ablate_with": "mean", "reference": "a " * 20000},
        },
        "a reference may have up to 16,384 tokens",
    ),
    ("patch", {"clean": "a", "corrupted": "a b c"}, "both prompts must have as many tokens"),
    ("patch", {"clean": "a", "corrupted": "a"}, "the prompts are the same"),
    ("patch", {"clean": "a", "corrupted": "b", "maps": ["head"]}, "maps must be a list of stream"),
    ("patch", {"clean": "a", "corrupted": "b", "answer": 5, "versus": 5}, "are both"),
]


@pytest.mark.parametrize(("name", "body", "reason"), WRONG)
def test_a_wrong_question_is_answered_in_a_sentence(
    look: Ask, name: str, body: dict[str, Any], reason: str
) -> None:
    found = look(name, **body)
    assert found.status == 400
    assert reason in found.error
    assert "\n" not in found.error


def test_more_patches_than_allowed_are_refused_before_any_is_made(
    look: Ask, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = patching.count(network, 2)
    monkeypatch.setattr(insight, "MOST_PATCHES", total)
    assert look("patch", clean=CLEAN, corrupted=CORRUPTED).status == 200
    monkeypatch.setattr(insight, "MOST_PATCHES", total - 1)
    refused = look("patch", clean=CLEAN, corrupted=CORRUPTED)
    assert refused.status == 400
    assert f"{total} patches, of up to {total - 1}" in refused.error
    assert look("patch", clean=CLEAN, corrupted=CORRUPTED, maps=["heads"]).status == 200


@needs_engine
def test_quantized_weights_are_looked_into_in_fp32_and_not_changed(ids: list[int]) -> None:
    with servers.here(load("bard", precision="int8")) as (port, _):
        found = servers.ask(port, "/page/v1/inspect", {"prompt": ids})
        assert found.status == 200
        refused = servers.ask(port, "/page/v1/inspect", {"prompt": ids, "plan": PLAN})
        assert refused.status == 400
        assert "has no precision int8" in refused.error
        unchangeable = servers.ask(port, "/page/v1/model").json["unchangeable"]
        assert unchangeable == refused.error


def test_weights_that_give_no_numbers_are_the_servers_fault(
    look: Ask, network: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "lens", lambda model, stream: network.head(stream) * float("nan"))
    for name in ("inspect", "effect"):
        found = look(name, prompt="a")
        assert found.status == 500
        assert "give no numbers" in found.error
