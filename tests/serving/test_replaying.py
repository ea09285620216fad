"""Records of all kinds written again; what is wrong in one is a sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BYTES, ScriptedDecoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt2cli
from gpt2cli.api import LoadedModel
from gpt2cli.config.interventions import Interventions
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.sampling.rules import generator
from gpt2cli.serving import choices, completions
from gpt2cli.serving.http.service import Service
from gpt2cli.serving.replaying import reading
from gpt2cli.serving.replaying.comparing import changes
from gpt2cli.serving.replaying.record import Place
from gpt2cli.serving.replaying.repeating import Outcome, repeat
from gpt2cli.serving.replaying.weighing import Weighed, weigh

SAMPLED = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    with gpt2cli.load("bard", device="cpu") as model:
        yield model


def outcomes(
    path: Path, data: Any, model: LoadedModel, run: Any = None, indent: int | None = None
) -> list[Outcome]:
    """What becomes of the texts of a file that holds this."""
    path.write_text(json.dumps(data, indent=indent), encoding="utf-8")
    beside = path.with_name(path.name + reading.BESIDE)
    beside.unlink(missing_ok=True)
    if run is not None:
        beside.write_text(json.dumps(run))

    def open_model(place: Place) -> LoadedModel:
        return model.under(place.interventions) if place.interventions else model

    return list(repeat(reading.read(str(path)), open_model))


def statuses(found: list[Outcome]) -> list[str]:
    return [one.status for one in found]


def branch(model: LoadedModel, parent: str | None, ids: list[int], origin: Any) -> dict[str, Any]:
    tokens = [{"id": i, "text": model.tokenizer.show(i)} for i in ids]
    return {"parent": parent, "tokens": tokens, "name": "", "origin": origin}


def origin(model: LoadedModel, seed: int, sample: int, **other: Any) -> dict[str, Any]:
    asked = {**SAMPLED, "top_k": None, "n": 3, "max_tokens": 12, "seed": seed, "top": 5}
    facts = model.facts()
    return {"seed": seed, "sample": sample, "settings": asked, "facts": facts, **other}


def tree(model: LoadedModel) -> dict[str, Any]:
    """Three continuations at once, of which the second was forked within."""
    prompt = model.ids("ROMEO:")
    found = model.generate(prompt, max_tokens=12, samples=3, seed=5, **SAMPLED)
    first, second, third = (sample.token_ids for sample in found.samples)
    branches = {
        "root": branch(model, None, prompt, None),
        "first": branch(model, "root", first, origin(model, 5, 0)),
        "head": branch(model, "root", second[:4], origin(model, 5, 1)),
        "tail": branch(model, "head", second[4:], origin(model, 5, 1, offset=4)),
        "typed": branch(model, "head", model.ids(" and so"), None),
        "cut": branch(model, "root", third[:5], origin(model, 5, 2)),
    }
    page = {"format": "gpt2-page", "version": 1, "model": model.facts()}
    return page | {"tree": {"branches": branches, "leaf": "tail"}}


def pair(model: LoadedModel, **asked: Any) -> dict[str, Any]:
    """A request and its response, as the server makes it."""
    body = {"prompt": "ROMEO:", "max_tokens": 8, **asked}
    request = completions.read(body, {"max_tokens"})
    parts: list[dict[str, Any]] = []
    for prompt in request.prompts:
        found = model.generate(prompt, **{"seed": 11, **request.settings})
        answer = request.answer_to(prompt, model.tokenizer)
        parts += choices.choices_of(found, answer, [], model.tokenizer, len(parts))
    response = choices.completion("cmpl-1", 1, model.name, parts, None)
    return {
        "request": body,
        "response": response | {"system_fingerprint": Service(model).fingerprint},
    }


def test_every_branch_that_a_model_wrote_comes_again(model: LoadedModel, tmp_path: Path) -> None:
    found = outcomes(tmp_path / "page.json", tree(model), model)
    assert [(one.name, one.status, one.tokens) for one in found] == [
        ("branch first", "same", 12),
        ("branch head", "same", 4),
        ("branch tail", "same", 8),
        ("branch cut", "same", 5),
    ]


def test_a_branch_under_a_plan_comes_again_under_it(model: LoadedModel, tmp_path: Path) -> None:
    page, plan = tree(model), Interventions.of(["layer.1"])
    prompt = model.ids("ROMEO:")
    with model.under(plan) as changed:
        ids = changed.generate(prompt, max_tokens=12, seed=5, **SAMPLED).token_ids
        told = origin(model, 5, 0, facts=changed.facts())
        asked = origin(model, 5, 0, facts={})  # stopped before it was told
    asked["settings"]["plan"] = plan.as_dict()
    branches = page["tree"]["branches"]
    assert ids != [token["id"] for token in branches["first"]["tokens"]]
    branches["told"] = branch(model, "root", ids, told)
    branches["asked"] = branch(model, "root", ids, asked)
    found = outcomes(tmp_path / "page.json", page, model, indent=1)
    assert statuses(found) == ["same"] * 6


def test_null_switches_off_what_a_model_has_by_default(model: LoadedModel, tmp_path: Path) -> None:
    page = tree(model)
    off = {**page["tree"]["branches"]["first"]["origin"]["settings"], "top_p": None}
    ids = model.generate("ROMEO:", max_tokens=12, seed=5, **{**SAMPLED, "top_p": 1.0}).token_ids
    page["tree"]["branches"] = {
        "root": page["tree"]["branches"]["root"],
        "off": branch(model, "root", ids, origin(model, 5, 0, settings=off)),
    }
    assert statuses(outcomes(tmp_path / "page.json", page, model)) == ["same"]


def test_the_first_other_token_is_shown_with_its_chances(
    model: LoadedModel, tmp_path: Path
) -> None:
    page = tree(model)
    tokens = page["tree"]["branches"]["tail"]["tokens"]
    was, tokens[2]["id"] = tokens[2]["id"], model.tokenizer.one(" king")
    found = outcomes(tmp_path / "page.json", page, model)
    assert statuses(found) == ["same", "same", "different", "same"]
    seen = found[2].different
    assert seen is not None
    assert (seen.at.position, seen.at.recorded, seen.at.now) == (6, tokens[2]["id"], was)
    assert seen.tokens == (" king", model.tokenizer.show(was))
    ids = [
        t["id"]
        for name in ("root", "head", "tail")
        for t in page["tree"]["branches"][name]["tokens"]
    ]
    place = len(page["tree"]["branches"]["root"]["tokens"]) + 6
    for token, logprob in zip((ids[place], was), seen.weighed.logprobs, strict=True):
        judged = model.generate(
            [*ids[:place], token], max_tokens=1, prompt_logprobs=0, seed=1, temperature=0
        ).prompt_logprobs[-1]
        assert judged is not None
        assert logprob == pytest.approx(judged.logprob, abs=1e-5)
    assert found[2].changes == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 3, "temperature": 0.7, "stop": ["\n"]},
        {"prompt": ["ROMEO:", "JULIET:"], "n": 2},
        {"n": 2, "best_of": 4},
        {"prompt": "A", "echo": True, "logit_bias": {"300": -100}},
        {"regex": "[a-z ]+", "max_tokens": 6},
    ],
    ids=str,
)
def test_an_answer_of_the_server_comes_again_from_its_request(
    model: LoadedModel, tmp_path: Path, asked: dict[str, Any]
) -> None:
    found = pair(model, **asked)
    again = outcomes(tmp_path / "pair.json", found, model)
    assert statuses(again) == ["same"] * len(found["response"]["choices"])
    found["response"]["choices"][-1]["text"] += "!"
    assert statuses(outcomes(tmp_path / "pair.json", found, model))[-1] == "different"


def test_an_answer_without_its_request_lacks_prompt_and_settings(
    model: LoadedModel, tmp_path: Path
) -> None:
    (found,) = outcomes(tmp_path / "bare.json", pair(model)["response"], model)
    assert found.error is not None
    assert "without its request, which has the prompt and the settings" in str(found.error)


def test_where_only_a_text_is_known_its_other_token_is_found_in_it(
    model: LoadedModel, tmp_path: Path
) -> None:
    found = pair(model, seed=3, max_tokens=12)
    now = found["response"]["choices"][0]["text"]
    ids = model.ids(now)
    begin = model.tokenizer.decode(ids[:3])
    found["response"]["choices"][0]["text"] = f"{begin} king of England"
    (one,) = outcomes(tmp_path / "pair.json", found, model)
    assert one.different is not None
    assert one.different.tokens[0] == " king"
    assert begin.endswith(one.different.before[-1])
    assert one.different.after[0].startswith(" of")


def test_what_has_changed_is_named_and_what_is_not_known_too(
    model: LoadedModel, tmp_path: Path
) -> None:
    found = pair(model, seed=3)
    found["response"]["system_fingerprint"] = "0.0.9-PyTorch-bf16"
    (one,) = outcomes(tmp_path / "pair.json", found, model)
    assert [change.name for change in one.changes] == ["precision", "engine", "version"]
    assert one.unsaid == ("device", "processor")


def weighed(temperature: float, logits: list[float], recorded: int) -> Weighed:
    """The first token after a prompt, where the model says so of the first ids, and now is 2."""
    row = np.full(BYTES.size, -1e9, np.float32)
    row[: len(logits)] = logits
    decoder = ScriptedDecoder(lambda *_: row)
    config = GenerationConfig(SamplingConfig(temperature=temperature), seed=7)
    return weigh(decoder, BYTES, [65], config, 1, [], (recorded, 2))


def test_a_sampled_token_was_missed_by_the_way_from_the_draw_to_its_share() -> None:
    """Tokens lie side by side in the order of their ids, here a quarter each."""
    at = float(generator(7, 1).random())
    for token in range(4):
        found = weighed(1, [0.0] * 4, token)
        assert found.miss == pytest.approx(max(token / 4 - at, at - (token + 1) / 4, 0))
        assert found.logprobs == pytest.approx((np.log(0.25), np.log(0.25)))
        assert found.is_near == (found.miss is not None and found.miss < 0.001)
    assert weighed(1, [0.0] * 4, 5).miss is None  # which cannot come


@pytest.mark.parametrize(("apart", "is_near"), [(0.5, False), (0.004, True)])
def test_greedy_tokens_are_near_where_their_logits_are(apart: float, is_near: bool) -> None:
    found = weighed(0, [1.0, 0.0, 1.0 + apart], 0)
    assert found.miss == pytest.approx(apart, abs=1e-4)
    assert found.is_near is is_near


ROW = {"prompt": "ROMEO:", "completion": "", "finish_reason": "length", "seed": 3}


def bulk(model: LoadedModel, **facts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A line of a bulk run, and what the run says of itself."""
    run = {"run": {**model.facts(), "seed": 1, "field": "prompt", "max_tokens": 9, **facts}}
    text = model.generate("ROMEO:", max_tokens=9, seed=3).text
    return {**ROW, "completion": text, "completion_tokens": 9}, run | {"finished": None}


def test_a_line_of_bulk_needs_what_lies_beside_it(model: LoadedModel, tmp_path: Path) -> None:
    line, run = bulk(model)
    assert statuses(outcomes(tmp_path / "lines.jsonl", line, model, run)) == ["same"]
    (lost,) = outcomes(tmp_path / "lines.jsonl", line, model)
    assert "in the file OUTPUT.run.json: name that as run" in str(lost.error)


def test_adapters_change_by_name_and_weight_not_by_where_they_lie() -> None:
    assert changes({"adapters": ["a/tuned=0.5"]}, {"adapters": ["b/tuned=0.5"]}) == []
    assert changes({"adapters": ["tuned"]}, {"adapters": ["tuned=1"]}) == []
    assert [c.name for c in changes({"adapters": ["tuned"]}, {"adapters": []})] == ["adapters"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**9, 2**63, 2**64, 10**40, -1, 0, 1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\0", "ROMEO:", "eos", "ngram", "2.3", "position.0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything within a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else []
    inner = enumerate(value) if isinstance(value, list) else inner
    for name, each in inner:
        yield from places(each, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """A copy with one thing replaced."""
    if not path:
        return by
    made = copy.copy(value)
    made[path[0]] = replaced(value[path[0]], path[1:], by)
    return made


@pytest.fixture(scope="module")
def genuine(model: LoadedModel) -> list[tuple[Any, Any]]:
    """Records of each kind, and the run beside those of bulk."""
    found = model.generate("ROMEO:", max_tokens=3, seed=1)
    generated = {
        "prompt": "ROMEO:",
        "sample": 0,
        "text": found.text,
        "token_ids": found.token_ids,
        "finish_reason": "length",
        **model.facts(),
        "prompt_token_ids": model.ids("ROMEO:"),
        "seed": 1,
        "sampling": {"temperature": 0.8, "top_p": 0.95, "xtc_threshold": 0.1},
        "max_tokens": 3,
        "samples": 1,
        "stop": ["x"],
        "bias": {"5": "-inf"},
        "beams": None,
        "constraint": {"regex": "[^x]+"},
        "draft": None,
        "overflow": "slide",
    }
    searched = {**generated, "beams": 2, "sampling": {"temperature": 0}, "stop": [], "bias": {}}
    searched |= {"constraint": None}
    drafted = {**generated, "draft": {"name": "ngram", "tokens": 3}, "constraint": None}
    return [
        (generated, None),
        (searched, None),
        (drafted, None),
        (tree(model), None),
        (pair(model, n=2, seed=2), None),
        bulk(model, bias={"7": "1.5"}, stop=["x"], temperature=0.5),
    ]


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_a_record_holds_there_is_an_outcome_or_a_sentence(
    model: LoadedModel, tmp_path: Path, genuine: list[tuple[Any, Any]], data: st.DataObject
) -> None:
    record, run = data.draw(st.sampled_from(genuine))
    if run is not None and data.draw(st.booleans()):
        run = replaced(run, data.draw(st.sampled_from(list(places(run)))), data.draw(JSON))
    else:
        record = replaced(record, data.draw(st.sampled_from(list(places(record)))), data.draw(JSON))
    with suppress(UsageError) if run is not None else nullcontext():
        found = outcomes(tmp_path / "any.json", record, model, run)
        assert all(one.error is None or str(one.error) for one in found)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON)
def test_what_is_no_record_is_told_so(model: LoadedModel, tmp_path: Path, value: Any) -> None:
    for one in outcomes(tmp_path / "any.json", value, model):
        assert one.status == "error"
        assert str(one.error)
