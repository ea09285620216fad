"""Every decoder with an adapter equals itself with the merged model, quantized weights too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import own
from helpers import needs_engine

import gpt2cli
from gpt2cli.api import LoadedModel
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.native import quantize
from gpt2cli.decoders.pages import Chunk

IDS = list(range(1, 20))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpt2cli"


@pytest.fixture
def tuned(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    return own(tmp_path / "tuned", tiny_config)


def open_model(directory: Path, precision: str, *adapters: str | Path) -> LoadedModel:
    return gpt2cli.load(str(directory), adapters=adapters, device="cpu", precision=precision)


def logits(model: LoadedModel) -> Any:
    decoder = model.decoder()
    found = decoder.read([Chunk(decoder.open(), 0, IDS, every=True)])
    return np.asarray(found.float() if isinstance(found, torch.Tensor) else found)


@pytest.mark.parametrize(
    ("precision", "without_engine"),
    [("fp32", False), ("fp32", True), ("bf16", False), ("int8", False), ("int4", False)],
)
def test_a_model_with_an_adapter_equals_the_merged_one(
    tiny_directory: Path,
    tuned: Path,
    tmp_path: Path,
    precision: str,
    without_engine: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision.startswith("int") and not native.available():
        pytest.skip(native.why_not())
    if without_engine:
        monkeypatch.setattr(native, "available", lambda: False)
    open_model(tiny_directory, "fp32", tuned).save(tmp_path / "merged")
    wanted = logits(open_model(tmp_path / "merged", precision))
    found = logits(open_model(tiny_directory, precision, tuned))
    assert np.array_equal(found, wanted)
    assert np.abs(found - logits(open_model(tiny_directory, precision))).max() > 0.5


@needs_engine
def test_quantized_weights_are_kept_for_each_choice_of_adapters(
    tiny_directory: Path, tuned: Path, tiny_config: ModelConfig, tmp_path: Path, cache: Path
) -> None:
    other = own(tmp_path / "other", tiny_config, seed=1)
    choices: list[list[str | Path]] = [[], [tuned], [f"{tuned}=0.5"], [other], [tuned, other]]
    models = [open_model(tiny_directory, "int8", *choice) for choice in choices]
    found = [logits(model) for model in models]
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == len(choices)
    for i, model in enumerate(models):
        assert model.why_quantized_again() is None
        assert np.array_equal(logits(model), found[i])
        assert not any(np.array_equal(found[i], other) for other in found[i + 1 :])
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files


@needs_engine
def test_an_adapter_that_was_trained_on_is_quantized_again(
    tiny_directory: Path, tuned: Path, tiny_config: ModelConfig, cache: Path
) -> None:
    before = logits(open_model(tiny_directory, "int8", tuned))
    own(tuned, tiny_config, seed=7)
    model = open_model(tiny_directory, "int8", tuned)
    assert model.why_quantized_again() is not None
    assert not np.array_equal(logits(model), before)
    assert len(list(cache.iterdir())) == 1


@needs_engine
def test_codes_of_an_adapter_that_is_gone_are_deleted(
    tiny_directory: Path, tuned: Path, cache: Path
) -> None:
    for adapters in ((), (tuned,)):
        logits(open_model(tiny_directory, "int8", *adapters))
    assert quantize.prune() == 0
    shutil.rmtree(tuned)
    assert quantize.prune() > 0
    assert list(cache.iterdir()) == [quantize.cache_path(tiny_directory, "int8")]
