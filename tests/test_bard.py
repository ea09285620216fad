"""The bundled model: small enough to travel, and as good as the README says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers import SHARED_DATA
from runs import windows

from gpt2cli.config.spec import BUNDLED_DIR, find_spec
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import VOCABULARY
from gpt2cli.training import trainer
from gpt2cli.training.corpus import split_text, train_vocabulary
from gpt2cli.weights import checkpoint

BARD = BUNDLED_DIR / "bard"


def test_bard_is_as_small_as_promised_and_fits_its_config() -> None:
    spec = find_spec("bard")
    assert spec is not None
    config, tensors = checkpoint.read(BARD)
    assert config == spec.model
    assert sum(tensor.bits.size for tensor in tensors.values()) <= 4_000_000
    assert (BARD / "model.safetensors").stat().st_size <= 8_000_000
    assert Tokenizer.load(BARD).size == config.vocab_size == 1024


@pytest.fixture
def shakespeare() -> str:
    path: Path = SHARED_DATA / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip("tinyshakespeare.txt is not at ../shared/data")
    return path.read_text(encoding="utf-8")


def test_bard_reaches_its_figure_on_text_that_it_has_not_seen(shakespeare: str) -> None:
    train, val = split_text(shakespeare, 0.1)
    tokenizer = Tokenizer.load(BARD)
    ids = [*tokenizer.encode(train)[-1:], *tokenizer.encode(val)]
    nats = trainer.evaluate(checkpoint.load(BARD), windows(ids, 256)) * (len(ids) - 1)
    assert nats / math.log(2) / len(val.encode()) == pytest.approx(2.141, abs=0.002)


def test_its_vocabulary_is_what_training_on_that_text_gives(
    shakespeare: str, tmp_path: Path
) -> None:
    train, _ = split_text(shakespeare, 0.1)
    train_vocabulary(train, 1024, tmp_path)
    for name in VOCABULARY:
        assert (tmp_path / name).read_bytes() == (BARD / name).read_bytes()
