"""A kept vocabulary is the one that was read, and nothing that befalls its file matters."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import EOT, TEXTS, Vocabulary

from gpt2cli.decoders.native import quantize
from gpt2cli.errors import TokenizerError, UsageError
from gpt2cli.text import kept, vocabulary
from gpt2cli.text.table import TokenTable
from gpt2cli.text.tokenizer import BRIEF, Tokenizer


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "gpt2cli"


@pytest.fixture
def directory(openai_vocabulary: Path, tmp_path: Path) -> Path:
    """A checkpoint's vocabulary that a test may change."""
    return Path(shutil.copytree(openai_vocabulary, tmp_path / "model"))


@pytest.fixture(scope="module", params=["small", "released"])
def parsed(request: pytest.FixtureRequest) -> Tokenizer:
    """A vocabulary as it was parsed."""
    read: Vocabulary = request.getfixturevalue(request.param)
    return Tokenizer.of(vocabulary.read(read.directory), "here")


@pytest.fixture(scope="module")
def briefly(parsed: Tokenizer) -> Callable[[], Tokenizer]:
    """What makes the same tokenizer of a table."""
    table = TokenTable.of(parsed._ranks)
    return lambda: Tokenizer(table, parsed._special, opening=parsed.opening)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, special=st.booleans())
@example(text="", special=True)
@example(text=EOT, special=True)
@example(text="Hello" + EOT + " world", special=True)
@example(text="a" * BRIEF, special=False)
@example(text="a" * (BRIEF + 1), special=False)
def test_a_short_text_has_the_tokens_that_all_ranks_give(
    parsed: Tokenizer, briefly: Callable[[], Tokenizer], text: str, special: bool
) -> None:
    tokenizer = briefly()
    ids = tokenizer.encode(text, special=special)
    assert ids == parsed.encode(text, special=special)
    assert tokenizer.decode_bytes(ids) == parsed.decode_bytes(ids) == text.encode()


def test_several_texts_have_the_same_tokens_when_all_ranks_are_needed_at_last(
    parsed: Tokenizer, briefly: Callable[[], Tokenizer]
) -> None:
    tokenizer = briefly()
    texts = [f"The {i}th of some short texts, {i * 7}\n" for i in range(2 * BRIEF // 20)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == parsed.encode(text)
        assert tokenizer.decode(ids) == text
    assert "_encoding" in vars(tokenizer)


def test_every_id_is_decoded_alike(parsed: Tokenizer, briefly: Callable[[], Tokenizer]) -> None:
    tokenizer = briefly()
    ids = range(parsed.size)
    assert [tokenizer.decode_bytes([i]) for i in ids] == [parsed.decode_bytes([i]) for i in ids]
    assert "_encoding" not in vars(tokenizer)
    for wrong in (-1, parsed.size, 2**32):
        with pytest.raises(UsageError, match=f"there is no token {wrong}; ids go from 0"):
            tokenizer.decode_bytes([0, wrong])


def test_a_gap_between_the_ids_is_no_token() -> None:
    tokenizer = Tokenizer(TokenTable.of({b"a": 0, b"b": 3, b"ab": 7}), {"<x>": 9})
    assert tokenizer.encode("abba<x>") == [7, 3, 0, 9]
    assert tokenizer.size == 10
    with pytest.raises(UsageError, match="there is no token 5"):
        tokenizer.decode_bytes([5])


def test_the_second_time_nothing_is_parsed(
    directory: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Tokenizer.load(directory)
    with monkeypatch.context() as patch:
        patch.setattr("gpt2cli.text.vocabulary.read", lambda _: pytest.fail("it was parsed"))
        second = Tokenizer.load(directory)
        ids = second.encode("Hello, world!")
        assert ids == first.encode("Hello, world!")
    assert second == first
    assert (second.size, second.end_of_text) == (first.size, first.end_of_text) == (50257, 50256)
    assert second.fingerprint() == first.fingerprint()
    assert second.token_bytes() == first.token_bytes()
    assert second.vocabulary == first.vocabulary
    assert len(list(assets.iterdir())) == 1


def test_checkpoints_with_the_same_vocabulary_share_a_file(directory: Path, assets: Path) -> None:
    other = Path(shutil.copytree(directory, directory.parent / "other"))
    assert Tokenizer.load(directory) == Tokenizer.load(other)
    assert len(list(assets.iterdir())) == 1


def test_tokens_before_every_text_and_added_ones_are_kept_too(
    directory: Path, assets: Path
) -> None:
    (directory / "added_tokens.json").write_text(json.dumps({"<|user|>": 50257}))
    settings = {"add_bos_token": True, "bos_token": "<|user|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    first, second = Tokenizer.load(directory), Tokenizer.load(directory)
    assert list(assets.iterdir())
    assert first.encode("a<|user|>") == second.encode("a<|user|>") == [50257, 64, 50257]
    assert second.decode([50257, 64]) == "<|user|>a"
    assert first == second


def test_a_change_of_the_files_is_noticed_whatever_their_time(
    directory: Path, assets: Path
) -> None:
    Tokenizer.load(directory)
    path = directory / "vocab.json"
    stat = path.stat()
    changed = path.read_text("utf-8").replace('"Hello": 15496', '"Hellu": 15496')
    path.write_text(changed, "utf-8")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(TokenizerError, match="the vocabulary lacks 'Hello'"):
        Tokenizer.load(directory)


def flipped(at: float) -> Callable[[bytes], bytes]:
    """What changes one bit, so far into a file."""

    def change(data: bytes) -> bytes:
        i = int(at * (len(data) - 1))
        return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        *(flipped(at) for at in (0, 2e-6, 1e-4, 2e-4, 4e-4, 6e-4, 0.1, 0.4, 0.6, 0.9, 1)),
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:9],
        lambda data: b"",
        lambda data: data + b" ",
        lambda data: b"\xff" * len(data),
        lambda data: (2).to_bytes(8, "little") + b"{}",
        lambda data: (4).to_bytes(8, "little") + b"null",
        lambda data: (40_000).to_bytes(8, "little") + b"[" * 40_000,
    ],
)
def test_a_damaged_file_is_made_again(
    directory: Path, assets: Path, damage: Callable[[bytes], bytes]
) -> None:
    expected = Tokenizer.load(directory)
    [file] = assets.iterdir()
    good = file.read_bytes()
    file.write_bytes(damage(good))
    known = kept.identity(directory)
    assert known
    # A bit of the padding, or of a name that nothing looks at, is no damage.
    found = kept.find(known)
    assert found is None or Tokenizer(found.table, found.special) == expected
    assert Tokenizer.load(directory) == expected
    if found is None:
        assert file.read_bytes() == good


def test_the_file_of_another_vocabulary_is_not_taken_for_ours(
    directory: Path, assets: Path
) -> None:
    expected = Tokenizer.load(directory)
    [file] = assets.iterdir()
    (directory / "added_tokens.json").write_text(json.dumps({"<|user|>": 50257}))
    other = Tokenizer.load(directory)
    [others] = set(assets.iterdir()) - {file}
    shutil.copy(file, others)
    assert Tokenizer.load(directory) == other != expected


def test_what_cannot_be_kept_is_parsed_each_time(directory: Path, assets: Path) -> None:
    expected = Tokenizer.load(directory)
    shutil.rmtree(assets)
    assets.write_text("a file where the folder should be")
    assert Tokenizer.load(directory) == expected
    assert assets.is_file()


def test_a_fifo_in_the_place_of_the_file_is_replaced(directory: Path, assets: Path) -> None:
    expected = Tokenizer.load(directory)
    [file] = assets.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert Tokenizer.load(directory) == expected
    assert file.is_file()


def test_small_vocabularies_are_not_kept(tiny_directory: Path, assets: Path) -> None:
    Tokenizer.load(tiny_directory)
    assert not assets.exists()


def test_a_vocabulary_that_cuts_text_otherwise_is_not_kept(directory: Path, assets: Path) -> None:
    found = vocabulary.read(directory)
    model = {"type": "BPE", "vocab": found.tokens, "merges": found.merges}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    data = {"pre_tokenizer": level, "model": model, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(data))
    assert Tokenizer.load(directory).encode("a") == Tokenizer.load(directory).encode(" a")
    assert not assets.exists()


def test_pruning_removes_the_vocabulary_of_a_checkpoint_that_is_gone(
    directory: Path, assets: Path
) -> None:
    Tokenizer.load(directory)
    [file] = assets.iterdir()
    size = file.stat().st_size
    assert quantize.prune() == 0
    shutil.rmtree(directory)
    assert quantize.prune() == size
    assert not list(assets.iterdir())
