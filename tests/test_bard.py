"""The bundled model: small enough to travel, and as good as docs/bard.md says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from helpers import SHARED_DATA
from runs import windows

import gpt2cli
from gpt2cli.config.spec import BUNDLED_DIR, find_spec
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import END_OF_TEXT, byte_alphabet
from gpt2cli.training import trainer
from gpt2cli.training.corpus import split_text
from gpt2cli.weights import checkpoint

BARD = BUNDLED_DIR / "bard"


def test_bard_is_as_small_as_promised_and_fits_its_config() -> None:
    spec = find_spec("bard")
    assert spec is not None
    config, tensors = checkpoint.read(BARD)
    assert config == spec.model
    assert sum(tensor.bits.size for tensor in tensors.values()) <= 4_000_000
    assert sum(file.stat().st_size for file in BARD.iterdir()) <= 8_000_000
    tokenizer = Tokenizer.load(BARD)
    assert tokenizer.size == config.vocab_size == 2048
    assert tokenizer.encode(END_OF_TEXT) == [tokenizer.end_of_text] == [0]


def test_its_vocabulary_is_end_of_text_the_bytes_and_what_merges_make_of_them() -> None:
    vocabulary = json.loads((BARD / "vocab.json").read_text(encoding="utf-8"))
    merges = (BARD / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert in_order == [END_OF_TEXT, *byte_alphabet(), *(m.replace(" ", "") for m in merges)]


@pytest.fixture
def shakespeare() -> str:
    path: Path = SHARED_DATA / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip("tinyshakespeare.txt is not at ../shared/data")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("context", "figure"), [(512, 1.784), pytest.param(256, 1.815, marks=pytest.mark.slow)]
)
def test_bard_reaches_its_figure_on_text_that_it_has_not_seen(
    shakespeare: str, context: int, figure: float
) -> None:
    train, val = split_text(shakespeare, 0.1)
    tokenizer = Tokenizer.load(BARD)
    ids = [*tokenizer.encode(train)[-1:], *tokenizer.encode(val)]
    nats = trainer.evaluate(checkpoint.load(BARD), windows(ids, context)) * (len(ids) - 1)
    assert nats / math.log(2) / len(val.encode()) == pytest.approx(figure, abs=0.002)


def test_it_begins_with_a_speaker_and_knows_where_a_text_may_end() -> None:
    speech = "JULIET:\nGood night, good night! Parting is such sweet sorrow.\n"
    with gpt2cli.load("bard", device="cpu", precision="fp32") as model:
        texts = [model.generate("", max_tokens=24, seed=seed).text for seed in range(20)]
        ends = [model.score(text + END_OF_TEXT).bits[-1] for text in (speech, speech[:-5])]
    assert sum(bool(re.match(r"[A-Z][A-Za-z' ]+:\n", text)) for text in texts) >= 18, texts
    assert ends[0] < 10 < ends[1]  # bits: after a speech, and within a word
