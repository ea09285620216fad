"""Answers to requests: the texts of `generate`, whole or streamed, alone or in company."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import servers
import torch
from bulk_runs import read_rows, write_rows
from helpers import Run
from servers import Answer

from gpt2cli.api import LoadedModel
from gpt2cli.serving.http.engine import Job, News
from gpt2cli.weights import checkpoint

PROMPT = "ROMEO: But soft"
# Bodies, and the same in the settings of `LoadedModel.generate`.
ALIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"n": 3}, {"samples": 3}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"top_k": 5, "min_p": 0.05}, {"top_k": 5, "min_p": 0.05}),
    ({"top_p": 0.5, "temperature": 1.3}, {"top_p": 0.5, "temperature": 1.3}),
    ({"frequency_penalty": 1.5, "presence_penalty": -0.5},) * 2,
    ({"repetition_penalty": 1.4},) * 2,
    ({"logit_bias": {"11": 5, "12": -100}}, {"bias": {11: 5, 12: -100}}),
    ({"stop": [",", "\n"]}, {"stop": (",", "\n")}),
    ({"stop": "th", "min_tokens": 12}, {"stop": ("th",), "min_tokens": 12}),
    ({"stop_token_ids": [10, 11]}, {"stop_token_ids": (10, 11)}),
    ({"ignore_eos": True, "logit_bias": {"0": 3}}, {"ignore_eos": True, "bias": {0: 3}}),
    ({"mirostat_tau": 3.0, "top_p": None}, {"mirostat_tau": 3.0}),
    ({"dry_multiplier": 0.8, "no_repeat_ngram": 3, "typical_p": 0.9},) * 2,
    ({"xtc_probability": 0.5, "top_p": 1},) * 2,
    ({"temperature": 100},) * 2,  # bytes that are no characters
]


def texts(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [choice["text"] for choice in answer.json["choices"]]


def joined(chunks: list[Any]) -> list[Any]:
    """The choices that the chunks of a stream add up to, in the order of their indices."""
    found: dict[int, Any] = {}
    for chunk in chunks:
        for new in chunk["choices"]:
            choice = found.setdefault(new["index"], new | {"text": "", "logprobs": None})
            assert choice["finish_reason"] is None or choice is found[new["index"]]
            choice["text"] += new["text"]
            choice["finish_reason"] = new["finish_reason"]
            if new["logprobs"] is not None:
                so_far = choice["logprobs"] or {name: [] for name in new["logprobs"]}
                choice["logprobs"] = {n: so_far[n] + more for n, more in new["logprobs"].items()}
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize(("body", "settings"), ALIKE)
def test_a_text_is_that_of_generate_and_streamed_the_same(
    complete: Any, bard: LoadedModel, body: dict[str, Any], settings: dict[str, Any]
) -> None:
    usual = {"temperature": 1.0} | ({} if "mirostat_tau" in settings else {"top_p": 1.0})
    expected = bard.generate(PROMPT, seed=5, max_tokens=24, **(usual | settings))
    asked = {"prompt": PROMPT, "seed": 5, "max_tokens": 24} | body
    answer = complete(**asked)
    assert texts(answer) == [sample.text for sample in expected.samples]
    for choice, sample in zip(answer.json["choices"], expected.samples, strict=True):
        reason = "stop" if sample.finish_reason == "eos" else sample.finish_reason
        assert (choice["finish_reason"], choice["seed"]) == (reason, 5)
    prompt_tokens, count = len(bard.encode(PROMPT)), sum(s.count for s in expected.samples)
    assert answer.json["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": count,
        "total_tokens": prompt_tokens + count,
    }
    streamed = complete(**asked, stream=True).chunks
    assert joined(streamed) == answer.json["choices"]
    assert sum(len(chunk["choices"]) for chunk in streamed) == count


def test_all_ways_to_a_text_give_the_same(
    run_main: Run, complete: Any, bard: LoadedModel, tmp_path: Path
) -> None:
    bodies = [
        {"prompt": "JULIET:", "seed": 3, "max_tokens": 12, "temperature": 0.9, "top_p": 0.8},
        {"prompt": "a", "seed": 4, "n": 2, "logprobs": 2, "max_tokens": 9, "echo": True},
        {"prompt": bard.encode("The king"), "seed": 1, "best_of": 4, "n": 2, "max_tokens": 7},
        {"prompt": "", "seed": 2, "max_tokens": 5, "logprobs": 0, "echo": True},
    ]
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    source = write_rows(tmp_path / "in.jsonl", lines)
    run_main("bulk", str(source), "-o", str(tmp_path / "out.jsonl"), "-m", "bard")
    for row, body in zip(read_rows(tmp_path / "out.jsonl"), bodies, strict=True):
        served = complete(**body).json
        assert row["response"]["body"]["choices"] == served["choices"]
        assert row["response"]["body"]["usage"] == served["usage"]
    options = ["--temperature", "0.9", "--top-p", "0.8", "--seed", "3", "--max-tokens", "12"]
    done = run_main("generate", "JULIET:", "-m", "bard", *options, "--no-echo")
    assert done.stdout.decode().removesuffix("\n") == texts(complete(**bodies[0]))[0]


def test_company_changes_no_text(served: Any, bard: LoadedModel) -> None:
    port = served[0]
    bodies = [
        {"prompt": f"row {i}: " * (i % 7 + 1), "seed": i, "n": i % 3 + 1, "stream": i % 2 == 0}
        | {"max_tokens": 10 + i, "temperature": 0.5 + i / 20}
        for i in range(20)
    ]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda body: servers.ask(port, "/v1/completions", body), bodies))
    for body, answer in zip(bodies, found, strict=True):
        expected = bard.generate(
            body["prompt"],
            seed=body["seed"],
            samples=body["n"],
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=1.0,
        )
        choices = joined(answer.chunks) if body["stream"] else answer.json["choices"]
        assert [c["text"] for c in choices] == [s.text for s in expected.samples]


def test_several_prompts_are_numbered_through(complete: Any, bard: LoadedModel) -> None:
    prompts = ["First", bard.encode("Second"), "", "First"]
    body = {"prompt": prompts, "n": 2, "seed": 9, "max_tokens": 6}
    whole = complete(**body).json
    assert [choice["index"] for choice in whole["choices"]] == list(range(8))
    alone = [texts(complete(**body | {"prompt": prompt})) for prompt in prompts]
    assert [choice["text"] for choice in whole["choices"]] == [*chain(*alone)]
    assert joined(complete(**body, stream=True).chunks) == whole["choices"]
    lengths = [len(bard.ids(prompt)) for prompt in prompts]
    assert whole["usage"]["prompt_tokens"] == sum(lengths)


def test_without_a_seed_texts_differ_and_can_be_had_again(complete: Any) -> None:
    one, other = (complete(prompt="a", max_tokens=12).json["choices"][0] for _ in range(2))
    assert one["seed"] != other["seed"]
    assert one["text"] != other["text"]
    assert texts(complete(prompt="a", max_tokens=12, seed=one["seed"])) == [one["text"]]


def test_an_answer_has_openais_fields(complete: Any) -> None:
    answer = complete(prompt="a", max_tokens=3)
    assert answer.headers["content-type"] == "application/json"
    found = answer.json
    assert found["id"].startswith("cmpl-")
    assert (found["object"], found["model"]) == ("text_completion", "bard")
    assert found["system_fingerprint"].endswith("-fp32")
    assert found["id"] != complete(prompt="a", max_tokens=3).json["id"]


def test_chunks_have_one_id_and_no_usage_unless_it_is_asked_for(complete: Any) -> None:
    answer = complete(prompt="a", max_tokens=4, stream=True, ignore_eos=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert len(answer.chunks) == 4
    assert len({(chunk["id"], chunk["created"]) for chunk in answer.chunks}) == 1
    assert not any("usage" in chunk for chunk in answer.chunks)


def test_usage_comes_at_the_end_or_with_every_chunk(complete: Any, bard: LoadedModel) -> None:
    body = {"prompt": PROMPT, "max_tokens": 4, "stream": True, "ignore_eos": True}
    read = len(bard.encode(PROMPT))
    *chunks, last = complete(**body, stream_options={"include_usage": True}).chunks
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    assert last["usage"]["total_tokens"] == read + 4
    both = {"include_usage": True, "continuous_usage_stats": True}
    chunks = complete(**body, stream_options=both).chunks
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 2, 3, 4, 4]
    each = complete(**body, stream_options={"continuous_usage_stats": True}).chunks
    assert [chunk["usage"]["completion_tokens"] for chunk in each] == [1, 2, 3, 4]
    none = complete(**body, stream_options={"include_usage": None}).chunks
    assert not any("usage" in chunk for chunk in none)


def test_characters_come_whole_though_their_tokens_do_not(complete: Any) -> None:
    body = {"prompt": "a", "regex": "(é|漢|😀){6}", "max_tokens": 40, "seed": 1}
    whole = complete(**body).json
    [text] = texts(complete(**body))
    assert re.fullmatch("(é|漢|😀){6}", text)
    chunks = complete(**body, stream=True, logprobs=0).chunks
    assert len(chunks) == whole["usage"]["completion_tokens"] > 6
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == text
    assert "" in pieces
    offsets = [o for c in chunks for o in c["choices"][0]["logprobs"]["text_offset"]]
    assert sorted(set(offsets)) == [0, 1, 2, 3, 4, 5]


def test_a_stop_is_held_back_and_never_sent(complete: Any) -> None:
    body = {"prompt": PROMPT, "seed": 5, "max_tokens": 40, "temperature": 0.8}
    [free] = texts(complete(**body))
    stop = free[20:24]
    [cut] = texts(complete(**body, stop=stop))
    assert cut == free[: free.index(stop)]
    chunks = complete(**body, stop=["never there", stop], stream=True).chunks
    assert joined(chunks)[0]["text"] == cut
    assert joined(chunks)[0]["finish_reason"] == "stop"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("prompt", ["ROMEO: naïve", "", [195, 11], ["a b", "c"]])
@pytest.mark.parametrize("count", [None, 0, 3])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_an_echo_is_the_same_streamed(
    complete: Any, bard: LoadedModel, prompt: Any, count: int | None, max_tokens: int
) -> None:
    body = {"prompt": prompt, "echo": True, "logprobs": count, "max_tokens": max_tokens}
    body |= {"n": 2, "seed": 6, "ignore_eos": True}
    whole = complete(**body).json
    prompts = prompt if isinstance(prompt, list) and isinstance(prompt[0], str) else [prompt]
    for choice in whole["choices"]:
        one = prompts[choice["index"] // 2]
        echo = one if isinstance(one, str) else bard.tokenizer.decode(one)
        assert choice["text"].startswith(echo)
        assert (choice["text"] == echo) == (max_tokens == 0)
        assert choice["finish_reason"] == "length"
        if count is None:
            assert choice["logprobs"] is None
            continue
        listed = choice["logprobs"]
        ids = bard.ids(one)
        assert {len(values) for values in listed.values()} == {len(ids) + max_tokens}
        assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
        assert None not in listed["token_logprobs"][1:]
        assert listed["text_offset"] == sorted(listed["text_offset"])
        if max_tokens:
            assert listed["text_offset"][len(ids)] == len(echo)
    assert whole["usage"]["completion_tokens"] == 2 * max_tokens * len(prompts)
    assert joined(complete(**body, stream=True).chunks) == whole["choices"]


def test_logprobs_are_the_models_before_any_rule(complete: Any, bard: LoadedModel) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "seed": 2, "logprobs": 3}
    ruled = body | {"temperature": 0.3, "top_k": 2, "logit_bias": {"11": 3}}
    ruled |= {"repetition_penalty": 1.5}
    [choice] = complete(**ruled).json["choices"]
    # What was written is read by another request, as a prompt: the same numbers.
    settings = {"temperature": 0.3, "top_k": 2, "top_p": 1.0, "repetition_penalty": 1.5}
    ids = bard.generate(PROMPT, seed=2, max_tokens=8, bias={11: 3}, **settings).token_ids
    ids = bard.encode(PROMPT) + ids
    listed = complete(prompt=ids, max_tokens=0, echo=True, logprobs=3).json["choices"][0][
        "logprobs"
    ]
    tokens, values = choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"]
    assert listed["tokens"][-8:] == tokens
    assert listed["token_logprobs"][-8:] == pytest.approx(values, abs=1e-4)
    assert "".join(tokens) == choice["text"]
    scores = torch.log_softmax(checkpoint.load(bard.directory)(torch.tensor([ids]))[0], -1)
    expected = [float(scores[i, token_id]) for i, token_id in enumerate(ids[1:])]
    assert listed["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)


def test_the_chosen_token_is_among_the_top_with_the_same_number(complete: Any) -> None:
    answer = complete(prompt="a", max_tokens=40, temperature=100, logprobs=2, n=3, seed=1)
    json.loads(answer.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    names: list[str] = []
    for choice in answer.json["choices"]:
        listed = choice["logprobs"]
        for name, value, top in zip(
            listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True
        ):
            assert top[name] == value
            assert len(top) in (2, 3)
            assert value <= max(top.values()) <= 0
        names += listed["tokens"]
    assert any(name.startswith("bytes:\\x") for name in names)


def test_the_best_of_many_are_the_most_probable(complete: Any) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "seed": 3, "ignore_eos": True}
    every = complete(**body, n=6, logprobs=0).json["choices"]
    every.sort(key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]))
    best = complete(**body, n=2, best_of=6)
    assert texts(best) == [choice["text"] for choice in every[:2]]
    assert [choice["index"] for choice in best.json["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in best.json["choices"])
    assert best.json["usage"]["completion_tokens"] == 48  # all that was generated
    listed = complete(**body, n=2, best_of=6, logprobs=1).json["choices"]
    assert [choice["logprobs"] for choice in listed] != [None, None]


@pytest.mark.parametrize(
    ("constraint", "is_kept"),
    [
        ({"regex": r"\d{3}-\d{2}"}, lambda text: re.fullmatch(r"\d{3}-\d{2}", text)),
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        (
            {
                "json_schema": {"type": "object", "properties": {"a": {"type": "boolean"}}}
                | {"required": ["a"], "additionalProperties": False}
            },
            lambda text: json.loads(text)["a"] in (True, False),
        ),
        ({"json_schema": '{"type": "boolean"}'}, lambda text: text in ("true", "false")),
        ({"grammar": 'start: "a" | "b" start "c"'}, lambda text: re.fullmatch("b*ac*", text)),
    ],
)
def test_a_text_keeps_to_its_constraint(
    complete: Any, constraint: dict[str, Any], is_kept: Any
) -> None:
    body = {"prompt": "a", "max_tokens": 60, "seed": 8} | constraint
    answer = complete(**body)
    [text] = texts(answer)
    assert is_kept(text)
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert joined(complete(**body, stream=True).chunks) == answer.json["choices"]


def test_a_token_that_ends_a_text_is_listed_and_counted_but_not_shown(complete: Any) -> None:
    body = {"prompt": "a", "max_tokens": 9, "logit_bias": {"0": 100}, "logprobs": 0, "n": 2}
    answer = complete(**body, seed=1).json
    for choice in answer["choices"]:
        assert (choice["text"], choice["finish_reason"]) == ("", "stop")
        assert choice["logprobs"]["tokens"] == ["<|endoftext|>"]
    assert answer["usage"]["completion_tokens"] == 2
    assert joined(complete(**body, seed=1, stream=True).chunks) == answer["choices"]


def test_a_reader_who_is_late_misses_nothing(
    complete: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"prompt": "ab", "n": 2, "seed": 1, "max_tokens": 6, "ignore_eos": True}
    body |= {"echo": True, "logprobs": 1}
    whole = complete(**body).json
    news = Job.news

    async def late(job: Job) -> list[News]:
        await asyncio.sleep(0.1)  # several steps are done meanwhile
        return await news(job)

    monkeypatch.setattr(Job, "news", late)
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = complete(**body, stream=True, stream_options=options).chunks
    assert joined(chunks) == whole["choices"]
    assert last["usage"] == whole["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, 13))
