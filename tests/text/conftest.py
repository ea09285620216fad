"""Fixtures: vocabularies, small ones and GPT-2's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import REPOSITORY, TEXT
from tokenizers import ByteLevelBPETokenizer
from vocabularies import EOT, FRAGMENTS, Vocabulary, read_vocabulary

from gpt2cli.training.corpus import train_vocabulary


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """400 tokens, learned from this package's source and some text beyond ASCII."""
    sources = [path.read_text("utf-8") for path in sorted((REPOSITORY / "gpt2cli").rglob("*.py"))]
    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    trained.train_from_iterator(
        [*sources, *("".join(FRAGMENTS) for _ in range(20))],
        vocab_size=400,
        special_tokens=[EOT],
        show_progress=False,
    )
    directory = tmp_path_factory.mktemp("small")
    trained.save_model(str(directory))
    return read_vocabulary(directory)


@pytest.fixture(scope="session")
def released(openai_vocabulary: Path) -> Vocabulary:
    """The vocabulary that OpenAI released."""
    return read_vocabulary(openai_vocabulary)


@pytest.fixture(scope="session", params=["small", "released"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    found: Vocabulary = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of 300 tokens."""
    directory = tmp_path_factory.mktemp("pair")
    train_vocabulary(TEXT, 300, directory)
    return directory
