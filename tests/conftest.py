"""Fixtures: a tiny model, OpenAI's vocabulary where it is at hand, the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import (
    PROMPT,
    SHARED_DATA,
    TEXT,
    MakeDecoder,
    Run,
    checked,
    decoders,
    piped,
    random_model,
    says,
)

from gpt2cli.analysis import inspection
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.config.model import ModelConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training.corpus import train_vocabulary
from gpt2cli.weights import checkpoint

OWN = ("GPT2_", "HF_")  # what begins so is for the command, and is not handed down


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")


@pytest.fixture(scope="session", autouse=True)
def own_assets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is derived from models is kept away from the user's."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
        yield


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(vocab_size=300, context_length=32, emb_dim=24, n_heads=3, n_layers=2)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig) -> Path:
    """A checkpoint of random weights with a vocabulary of its own, in the hub's layout."""
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = train_vocabulary(TEXT, tiny_config.vocab_size, directory)
    assert tokenizer.end_of_text is not None
    assert tokenizer.size == tiny_config.vocab_size
    checkpoint.save(random_model(tiny_config), directory, tokenizer.end_of_text, torch.float32)
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_directory: Path) -> Tokenizer:
    return Tokenizer.load(tiny_directory)


@pytest.fixture(scope="session")
def tiny_model(tiny_directory: Path) -> GPT2:
    """The model of `tiny_directory`, which no test may change."""
    return checkpoint.load(tiny_directory)


@pytest.fixture(scope="session")
def tiny_inspection(tiny_model: GPT2, tiny_tokenizer: Tokenizer) -> Inspection:
    """What the tiny model does with `PROMPT`."""
    return inspection.inspect(tiny_model, tiny_tokenizer, tiny_tokenizer.encode(PROMPT)[:32])


@pytest.fixture(scope="session")
def openai_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's vocabulary under the names that a checkpoint uses."""
    if not (SHARED_DATA / "encoder.json").is_file():
        pytest.skip("OpenAI's encoder.json and vocab.bpe are not at ../shared/data")
    directory = tmp_path_factory.mktemp("openai")
    shutil.copy(SHARED_DATA / "encoder.json", directory / "vocab.json")
    shutil.copy(SHARED_DATA / "vocab.bpe", directory / "merges.txt")
    return directory


@pytest.fixture(scope="module", params=["torch", "numpy", "native"])
def make(request: pytest.FixtureRequest, tiny_directory: Path) -> MakeDecoder:
    """What makes a decoder of the tiny model, of each kind in turn."""
    return decoders(request.param, tiny_directory)


@pytest.fixture
def run_process(tmp_path: Path) -> Run:
    """Run the command as a shell would, in a process of its own, away from the user's cache."""

    def run(
        *arguments: str | bytes,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        code: int = 0,
    ) -> subprocess.CompletedProcess[bytes]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(OWN)}
        done = subprocess.run(
            [sys.executable, "-m", "gpt2cli", *arguments],
            input=stdin,
            capture_output=True,
            env={**clean, "HF_HOME": str(tmp_path / "hf"), **(env or {})},
            timeout=120,
            check=False,
        )
        return checked(done, code)

    return run


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Run:
    """As `run_process`, but in this process, which has imported torch already.

    huggingface_hub has read its environment, too; it finds an empty cache and no hub.
    """
    from huggingface_hub import constants

    from gpt2cli.cli import main

    for name in [name for name in os.environ if name.startswith(OWN)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "hf" / "assets"))

    def run(
        *arguments: str | bytes,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        code: int = 0,
    ) -> subprocess.CompletedProcess[bytes]:
        words = ["gpt2", *map(os.fsdecode, arguments)]
        with (
            piped(stdin) as pipe,
            patch.dict(os.environ, env or {}),
            patch.multiple(sys, argv=words, stdin=pipe),
            pytest.raises(SystemExit) as left,
        ):
            main()
        captured = capfdbinary.readouterr()
        found = left.value.code or 0
        assert isinstance(found, int)
        done = subprocess.CompletedProcess(words, found, captured.out, captured.err)
        return checked(done, code)

    return run


@pytest.fixture(scope="session")
def letters(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with the letters b, c, d, … according to the prompt's length."""
    tokenizer = Tokenizer.load(tiny_directory)
    ids = [tokenizer.encode(letter)[0] for letter in "bcdefghijklmnopqrstuvwxyz"]
    return says(tmp_path_factory.mktemp("letters"), ids, tiny_directory)
