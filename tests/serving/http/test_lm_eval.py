"""lm-evaluation-harness through the server finds what it finds in the model by itself.

The reference is the harness's own backend for transformers, on the same weights and tasks. The
server's context L holds L - 1 tokens of a text and the one that must be generated, so the harness
cuts texts there; transformers' backend cuts them alike at a `max_length` of L - 2, as it counts the
tokens that are read before the last one is measured, and at L - 1 where texts are generated.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from servers import command, here

import gpt2cli
from gpt2cli.api import LoadedModel
from gpt2cli.config.spec import find_spec
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.serving.http.settings import Policy
from gpt2cli.weights import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # hf scores the same, slowly

LINES = [
    "ROMEO: The night is long, and I have lost my way.",
    "JULIET: Then speak, good sir; what light do you seek?",
    "FIRST CITIZEN: We are hungry, and the corn is dear!",
    "The king hath sent 1,234 men — “to arms”, he cried – across the sea.",
    "NURSE: Where is my lady? I'll go; you're late, they've gone.",
    "Ein naïver Gärtner in Zürich singt: ♥ 😀 日本語.",
    "    two  spaces,\ta tab, and a line that ends in some   ",
    "",
]
METRICS = ("perplexity", "acc", "acc_norm", "exact_match")
METRICS += ("word_perplexity", "byte_perplexity", "bits_per_byte")
MEASURED = ("tail", "document", "which")
TASKS: dict[str, dict[str, Any]] = {
    "tail": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{tail}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity"},
            {"metric": "acc", "aggregation": "mean"},
        ],
    },
    "document": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "word_perplexity"},
            {"metric": "byte_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    },
    "which": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {
            "until": ["\n", "?"],
            "max_gen_toks": 20,
            "do_sample": False,
            "temperature": 0.0,
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    },
}


@dataclass
class Bench:
    """A model, tasks for it, and what the harness finds there without a server."""

    model: LoadedModel
    tasks: Any  # the harness's manager of them
    reference: dict[str, Any]

    def served(self, port: int, options: dict[str, Any]) -> dict[str, Any]:
        """What the harness finds through a server; it looks itself for a tokenizer there."""
        given = {
            "model": self.model.name,
            "base_url": f"http://127.0.0.1:{port}/v1/completions",
            "max_length": self.model.config.context_length,
            "max_retries": 1,
        }
        return _evaluate("local-completions", given | options, tuple(TASKS), self.tasks)


def _evaluate(
    model: str, options: dict[str, Any], names: Sequence[str], tasks: Any
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model, model_args=options, tasks=list(names), task_manager=tasks, bootstrap_iters=0
    )
    assert found is not None
    return {
        name: {
            "metrics": {
                k: v for k, v in found["results"][name].items() if k.partition(",")[0] in METRICS
            },
            "answers": [each for row in found["samples"][name] for each in row["filtered_resps"]],
        }
        for name in names
    }


def _rows(model: LoadedModel) -> dict[str, list[dict[str, Any]]]:
    """The tasks' few rows, some of them longer than the model's context."""
    draw = random.Random(0)
    texts = ["\n".join(draw.choices(LINES, k=k)) for k in (1, 2, 3, 5)]
    texts += ["ROMEO:\nO, that", "My lord, I am"]
    long = ""
    while len(model.encode(long)) < 1.3 * model.config.context_length:
        long += draw.choice(LINES) + "\n"
    written = {text: model.generate(text, temperature=0, max_tokens=20).text for text in texts}
    tails = [(text, model.generate(text, temperature=0, max_tokens=3).text) for text in texts]
    tails += [("", LINES[0]), ("a word with a space after it ", "word")]
    tails += [(long, "\n".join(LINES)), *zip(texts, LINES, strict=False)]
    return {
        "tail": [{"text": text, "tail": tail} for text, tail in tails],
        "document": [{"text": text} for text in (*texts, "x", "é", long)],
        "which": [
            {"text": text, "choices": [f" {line}" for line in LINES[i:4]], "answer": i % 2}
            for i, text in enumerate([*texts[:2], long])
        ],
        "write": [
            {"text": text, "answer": re.split(r"[\n?]", said)[0]} for text, said in written.items()
        ]
        + [{"text": text, "answer": "none"} for text in (long, *LINES[:3])],
    }


def _bench(model: LoadedModel, directory: Path) -> Bench:
    from lm_eval.tasks import TaskManager

    rows = _rows(model)
    for name, task in TASKS.items():
        data = directory / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        files = {"data_files": {"test": str(data)}, "cache_dir": str(directory / "cache")}
        head = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(head | task))
    tasks = TaskManager(include_path=str(directory), include_defaults=False)
    context = model.config.context_length
    own = {"pretrained": str(model.directory), "dtype": "float32", "device": "cpu"}
    reference = {
        **_evaluate("hf", own | {"max_length": context - 2}, MEASURED, tasks),
        **_evaluate("hf", own | {"max_length": context - 1}, ["write"], tasks),
    }
    return Bench(model, tasks, reference)


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def bard(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return _bench(gpt2cli.load("bard", precision="fp32"), tmp_path_factory.mktemp("bard"))


@pytest.fixture(scope="module")
def large(openai_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The size of GPT-2, with random weights."""
    spec = find_spec("124M")
    assert spec is not None
    model = GPT2(spec.model)
    model.init_weights(torch.Generator().manual_seed(0))
    directory = tmp_path_factory.mktemp("124M")
    checkpoint.save(model, directory, 50256, torch.float32)
    for path in openai_vocabulary.iterdir():
        shutil.copy(path, directory)
    loaded = gpt2cli.load(str(directory), precision="fp32")
    return _bench(loaded, tmp_path_factory.mktemp("tasks"))


def check(found: dict[str, Any], reference: dict[str, Any]) -> None:
    """Fail unless the harness has found the same, answer by answer and in its metrics."""
    assert set(found) == set(reference) == set(TASKS)
    for name, task in found.items():
        expected = reference[name]
        for ours, theirs in zip(task["answers"], expected["answers"], strict=True):
            assert is_same(ours, theirs), (name, ours, theirs)
        assert set(task["metrics"]) == set(expected["metrics"])
        assert len(expected["metrics"]) == len(TASKS[name]["metric_list"])
        for metric, value in expected["metrics"].items():
            is_count = metric.startswith(("acc", "exact_match"))
            assert task["metrics"][metric] == (value if is_count else pytest.approx(value, 1e-4))


def is_same(ours: Any, theirs: Any) -> bool:
    """Whether two answers agree: texts and what is greedy exactly, log-likelihoods to 0.001."""
    if isinstance(theirs, str):
        return bool(ours == theirs)
    (a, *greedy_a), (b, *greedy_b) = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
    return abs(a - b) <= 1e-3 and greedy_a == greedy_b


BATCHES = [
    {},
    {"batch_size": 5},
    {"num_concurrent": 4},
    {"batch_size": 3, "num_concurrent": 3},
]


def test_bard_is_measured_through_the_server_as_by_transformers(bard: Bench) -> None:
    greedy = {is_greedy for _, is_greedy in bard.reference["tail"]["answers"]}
    assert greedy == {True, False}
    assert 0 < bard.reference["write"]["metrics"]["exact_match,none"] < 1
    with command("--precision", "fp32") as server:
        for options in BATCHES:
            check(bard.served(server.port, options), bard.reference)


def test_the_harness_sends_a_key_and_may_bring_its_own_tokenizer(
    bard: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"tokenizer_backend": "huggingface", "tokenizer": str(bard.model.directory)}
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with here(bard.model, policy=Policy("secret")) as (port, _):
        for options in ({"auth_token": "secret"}, own):
            check(bard.served(port, options | {"batch_size": 8}), bard.reference)


def test_a_model_of_the_size_of_gpt2_is_measured_through_the_server_as_by_transformers(
    large: Bench,
) -> None:
    with command("-m", str(large.model.directory), "--precision", "fp32") as server:
        for options in ({}, {"batch_size": 3, "num_concurrent": 3}):
            check(large.served(server.port, options), large.reference)
