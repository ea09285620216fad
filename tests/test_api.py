"""One open model: what is said, fetched and computed, and in which order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import Run, needs_engine

import gpt2cli
from gpt2cli.errors import ConfigError, DeviceError, UsageError, WeightsError
from gpt2cli.generation.loop import generate
from gpt2cli.system.device import Placement

FACTS = {"model", "repo_id", "revision", "device", "precision", "engine", "version"}


def test_generate_and_stream_are_the_loop_with_the_models_own_settings(
    tiny_directory: Path,
) -> None:
    model = gpt2cli.load(str(tiny_directory), device="cpu", precision="fp32")
    [first, second] = model.generate("The quick", samples=2, seed=3, max_tokens=9)
    config = model.configure(samples=2, seed=3, max_tokens=9)
    assert (config.sampling.temperature, config.sampling.top_p) == (0.8, 0.95)
    ids = model.encode("The quick")
    events = list(generate(model.decoder(2, 30), model.tokenizer, ids, config))
    for i, sample in enumerate((first, second)):
        assert sample.token_ids == [e.token_id for e in events if e.sample == i]
        assert sample.text == model.tokenizer.decode(sample.token_ids)
        assert sample.finish_reason == "length"
    assert "".join(e.text for e in model.stream("The quick", seed=3, max_tokens=9)) == first.text


def test_beams_are_found_too(tiny_directory: Path) -> None:
    model = gpt2cli.load(str(tiny_directory), device="cpu")
    best = model.generate("The", beams=3, samples=2, max_tokens=4, ignore_eos=True)
    assert [len(sample.token_ids) for sample in best] == [4, 4]


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
        "from gpt2cli.decoders import native; assert native.thread_count() == 1;"
        "[sample] = model.generate('A', max_tokens=2, seed=1); print(len(sample.token_ids))"
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


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    assert set(gpt2cli.__all__) <= set(dir(gpt2cli)) | {*gpt2cli.__all__}
    for name in gpt2cli.__all__:
        assert getattr(gpt2cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gpt2cli.nothing
