"""One open model: what is said, fetched and computed, and in which order."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import own
from helpers import Run, generate_into, needs_engine

import gpt2cli
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError, DeviceError, UsageError, WeightsError
from gpt2cli.generation.loop import generate
from gpt2cli.system.device import Placement
from gpt2cli.weights.merging import Chosen

FACTS = {
    *("model", "repo_id", "revision", "adapters"),
    *("device", "precision", "engine", "version", "processor"),
}


def test_generate_and_stream_are_the_loop_with_the_models_own_settings(
    tiny_directory: Path,
) -> None:
    model = gpt2cli.load(str(tiny_directory), device="cpu", precision="fp32")
    found = model.generate("The quick", samples=2, seed=3, max_tokens=9)
    first, second = found.samples
    assert (found.text, found.token_ids, found.seed) == (first.text, first.token_ids, 3)
    config = model.configure(samples=2, seed=3, max_tokens=9)
    assert (config.sampling.temperature, config.sampling.top_p) == (0.8, 0.95)
    ids = model.encode("The quick")
    assert found.prompt_tokens == len(ids)
    events = list(generate(model.decoder(200), model.tokenizer, ids, config))
    for i, sample in enumerate((first, second)):
        assert sample.token_ids == [e.token_id for e in events if e.sample == i]
        assert sample.text == model.tokenizer.decode(sample.token_ids)
        assert sample.finish_reason == "length"
    assert "".join(e.text for e in model.stream("The quick", seed=3, max_tokens=9)) == first.text


def test_beams_are_found_too(tiny_directory: Path) -> None:
    model = gpt2cli.load(str(tiny_directory), device="cpu")
    best = model.generate("The", beams=3, samples=2, max_tokens=4, ignore_eos=True)
    assert [len(sample.token_ids) for sample in best.samples] == [4, 4]


def test_a_score_is_that_of_the_command(run_main: Run) -> None:
    score = gpt2cli.load("bard", device="cpu").score("To be, or not to be")
    command = ("score", "-m", "bard", "--text", "To be, or not to be", "--json")
    told = json.loads(run_main(*command).stdout)
    assert told["perplexity"] == pytest.approx(score.summary.perplexity, rel=1e-6)
    assert told["token_ids"] == score.ids
    np.testing.assert_allclose(told["surprisal_bits"][1:], score.bits[1:], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 2}, "top_p must be above 0 and at most 1"),
        ({"topp": 0.5}, "unknown setting 'topp'; did you mean 'top_p'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named_as_a_setting(settings: dict[str, float], message: str) -> None:
    model = gpt2cli.load("bard", fetch=False)
    with pytest.raises(UsageError, match=message):
        model.generate("x", **settings)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "no such model"}, UsageError, "unknown model"),
        ({"name": "bard", "device": "tpu"}, DeviceError, "unknown device 'tpu'"),
        ({"name": "bard", "precision": "fp7"}, DeviceError, "precision must be auto, fp32"),
        ({"name": "bard", "device": "cuda", "precision": "int8"}, DeviceError, "is for a CPU"),
        ({"name": "/etc/hostname"}, UsageError, "a model is a directory"),
        ({"name": "/etc"}, ConfigError, "holds no model"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(
    arguments: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gpt2cli.load(**arguments)


def test_names_of_pytorch_are_understood() -> None:
    for theirs, ours in (("float32", "fp32"), ("bfloat16", "bf16")):
        model = gpt2cli.load("bard", device="cpu", precision=theirs)
        assert (model.precision, model.placement) == (ours, Placement("cpu", ours))


def test_nothing_is_fetched_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = gpt2cli.load("124M", offline=True, fetch=False)
    assert model.config.n_layers == 12
    with pytest.raises(WeightsError, match="has not been fetched"):
        _ = model.directory
    with pytest.raises(WeightsError, match="is not in the cache"):
        _ = model.tokenizer
    with pytest.raises(WeightsError, match="is not in the cache"):
        gpt2cli.load("124M", offline=True)


def test_a_prompt_is_fitted_once_and_refused_on_wish(tiny_directory: Path) -> None:
    model = gpt2cli.load(str(tiny_directory))
    ids = list(range(40))
    assert model.fit(ids) == ids[-24:]
    assert model.fit(ids[:32]) == ids[:32]
    with pytest.raises(UsageError, match="30 tokens of prompt and 3 to generate exceed"):
        model.fit(ids[:30], 3, "error")
    assert model.fit(ids[:29], 3, "error") == ids[:29]
    with pytest.raises(UsageError, match="overflow must be slide or error"):
        model.fit(ids, 3, "wrap")


def test_what_ran_has_the_same_keys_everywhere(run_main: Run, tiny_directory: Path) -> None:
    tiny = str(tiny_directory)
    model = ("-m", tiny, "--device", "cpu")
    records = [
        json.loads(run_main(*command, *model, "--json").stdout)
        for command in (
            ("generate", "The", "-n", "1"),
            ("score", "--text", "The quick"),
            ("inspect", "The quick"),
            ("bench", "--context", "4", "--tokens", "2", "--repeats", "1"),
        )
    ]
    two = json.loads(run_main("diff", "The quick", "-m", tiny, "-m", tiny, "--json").stdout)
    for record in (*records, *two["models"]):
        assert record.keys() >= FACTS
        assert (record["device"], record["precision"]) == ("cpu", "fp32")
    assert gpt2cli.load(tiny).facts().keys() == FACTS


def test_threads_are_limited_before_anything_computes() -> None:
    script = (
        "import sys, gpt2cli; assert 'numpy' not in sys.modules;"
        "model = gpt2cli.load('bard', device='cpu', threads=1, precision='bf16');"
        "import torch; assert torch.get_num_threads() == 1;"
        "from gpt2cli.threads import thread_count; assert thread_count() == 1;"
        "print(len(model.generate('A', max_tokens=2, seed=1).token_ids))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


@needs_engine
def test_quantized_weights_run_on_the_cpu_whatever_else_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpt2cli.system.device.may_have_gpu", lambda: True)
    assert gpt2cli.load("bard", precision="int4").facts()["device"] == "cpu"


PRECISIONS = ["fp32", pytest.param("int8", marks=needs_engine)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_prompt_of_many_is_completed_as_it_is_alone(precision: str) -> None:
    model = gpt2cli.load("bard", device="cpu", precision=precision)
    prompts: list[Any] = [
        "ROMEO:",
        {"prompt": "JULIET: O", "temperature": 0.0, "max_tokens": 5},
        [814, 26],
        {"prompt": "", "seed": 9, "samples": 2, "stop": "\n"},
        {"prompt": "x", "max_tokens": 0},
        {"prompt": 5},
        {"prompt": [10**6]},
        {"prompt": "x", "bias": {"70000": 1}},
        {"top_p": 0.5},
        ["ROMEO:"],
        *(f"{i} and" for i in range(30)),
    ]
    found = list(model.complete(iter(prompts), seed=4, max_tokens=12))
    assert [completion.index for completion in found] == list(range(len(prompts)))
    messages = [str(c.error) for c in found if c.error]
    assert len(messages) == 6
    for message, part in zip(
        messages, ("max_tokens", "text or", "0 to", "0 to", "text or", "0 to"), strict=True
    ):
        assert part in message
    for completion, prompt in zip(found, prompts, strict=True):
        if completion.error:
            continue
        own = {**prompt} if isinstance(prompt, dict) else {"prompt": prompt}
        text = own.pop("prompt")
        alone = model.generate(text, **{"seed": 4, "max_tokens": 12, **own})
        assert [s.text for s in alone.samples] == [s.text for s in completion.samples]
        assert (alone.seed, alone.prompt_tokens) == (completion.seed, completion.prompt_tokens)


@pytest.mark.parametrize("limit", ["max_sequences", "batch_tokens"])
def test_a_batch_of_nothing_is_refused(limit: str) -> None:
    model = gpt2cli.load("bard", device="cpu")
    with pytest.raises(UsageError, match=f"{limit} must be at least 1, not 0"):
        model.complete(["ROMEO:"], **{limit: 0})
    [found] = model.complete(["ROMEO:"], seed=1, max_tokens=3, **{limit: 1})
    assert found.text == model.generate("ROMEO:", seed=1, max_tokens=3).text


def test_a_scheduler_is_a_batch_of_its_own() -> None:
    model = gpt2cli.load("bard", device="cpu")
    scheduler = model.scheduler(3, 50, prompt_tokens=20)
    assert (scheduler.max_sequences, scheduler.batch_tokens) == (3, 50)
    assert scheduler.decoder is not model.batcher().scheduler.decoder
    scheduler.add(model.encode("ROMEO:"), model.configure(seed=1, max_tokens=2))
    assert [event.text for _, event in (*scheduler.step(), *scheduler.step())] == [  # type: ignore[union-attr]
        event.text for event in model.stream("ROMEO:", seed=1, max_tokens=2)
    ]
    with pytest.raises(UsageError, match="prompt_tokens must be at least 1, not 0"):
        model.scheduler(prompt_tokens=0)


def test_streams_of_several_threads_are_those_of_one() -> None:
    model = gpt2cli.load("bard", device="cpu")
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda seed: model.generate("ROMEO:", seed=seed, max_tokens=30), range(12))
        texts = [completion.text for completion in found]
    assert texts == [model.generate("ROMEO:", seed=s, max_tokens=30).text for s in range(12)]


def test_a_stream_closed_early_disturbs_nobody() -> None:
    with gpt2cli.load("bard", device="cpu") as model:
        events = model.stream("ROMEO:", seed=1, max_tokens=30)
        first = next(events)
        events.close()
        whole = model.stream("ROMEO:", seed=1, max_tokens=30)
        assert next(whole) == first
        assert sum(1 for _ in whole) == 29
    assert model.generate("ROMEO:", seed=1, max_tokens=1).text == first.text  # it opens again


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_model_works_in_another_process(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    context = multiprocessing.get_context(method)
    model = gpt2cli.load("bard", device="cpu", precision="fp32")
    expected = model.generate("ROMEO:", seed=1, max_tokens=9).text
    queue = context.Queue()
    process = context.Process(target=generate_into, args=(model, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
    assert model.generate("ROMEO:", seed=1, max_tokens=9).text == expected


def test_adapters_are_found_again_in_another_process_and_another_directory(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path / "tuned", tiny_config)
    monkeypatch.chdir(tmp_path)
    model = gpt2cli.load(str(tiny_directory), adapters=["tuned=0.5"], device="cpu")
    sent = pickle.dumps(model)
    monkeypatch.chdir("/")
    found = pickle.loads(sent)
    assert found.adapters == (Chosen(tmp_path / "tuned", 0.5),)
    expected = found.generate("The", seed=1, max_tokens=9).text
    monkeypatch.chdir(tmp_path)
    assert model.generate("The", seed=1, max_tokens=9).text == expected
    assert model.facts()["adapters"] == ["tuned=0.5"]


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    assert set(gpt2cli.__all__) <= set(dir(gpt2cli)) | {*gpt2cli.__all__}
    for name in gpt2cli.__all__:
        assert getattr(gpt2cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gpt2cli.nothing
