"""What --model may name, and what becomes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpt2cli.config.spec import BUNDLED_DIR, CONFIG_DIR
from gpt2cli.errors import ConfigError, UsageError, WeightsError
from gpt2cli.weights import sources
from gpt2cli.weights.cache import cached_models


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def put_into_cache(cache: Path, repo_id: str, model: Path) -> Path:
    """A complete snapshot, as a download leaves it."""
    commit = "c" * 40
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize("name", ["124M", "gpt2", "SMALL", "124m"])
def test_names_and_aliases_are_shipped_configs(name: str) -> None:
    source = sources.resolve(name)
    assert (source.name, source.repo_id) == ("124M", "openai-community/gpt2")
    assert source.directory is None
    assert source.config().n_layers == 12
    assert source.sampling.temperature == 0.8


def test_a_yaml_file_names_a_repository(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (CONFIG_DIR / "124M.yaml").read_text()
    path.write_text(text.replace("openai-community/gpt2", "someone/tuned"))
    assert sources.resolve(str(path)).repo_id == "someone/tuned"


def test_a_directory_is_read_as_it_is(tiny_directory: Path) -> None:
    source = sources.fetch(sources.resolve(str(tiny_directory)))
    assert source.directory == tiny_directory
    assert source.config().emb_dim == 24
    assert source.revision is None


def test_a_repository_in_the_cache_needs_no_network(
    tiny_directory: Path, empty_cache: Path
) -> None:
    snapshot = put_into_cache(empty_cache, "someone/tiny", tiny_directory)
    source = sources.fetch(sources.resolve("someone/tiny"), offline=True)
    assert source.directory == snapshot
    assert source.revision == "c" * 40
    assert [model.repo_id for model in cached_models()] == ["someone/tiny"]


def test_a_repository_out_of_reach_has_no_config(empty_cache: Path) -> None:
    with pytest.raises(UsageError, match="gpt2 models pull someone/tiny"):
        sources.resolve("someone/tiny").config()


def test_bard_is_bundled() -> None:
    source = sources.fetch(sources.resolve("bard"), offline=True)
    assert source.directory == BUNDLED_DIR / "bard"
    assert source.repo_id is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("125M", "unknown model '125M'; did you mean '124M'"),
        ("gpt2-medum", "did you mean 'gpt2-medium'"),
        ("no such thing", "it is no directory, no YAML file and none of .*124M"),
        ("a/b/c", "unknown model"),
        ("missing.yaml", "cannot read missing.yaml"),
    ],
)
def test_what_is_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sources.resolve(name)


def test_a_path_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        sources.resolve(str(tmp_path))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UsageError, match="not a file like"):
        sources.resolve(str(tmp_path / "weights.bin"))


def test_a_config_without_weights_says_how_to_get_some(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{vocab_size: 300, context_length: 8, emb_dim: 8, n_heads: 1, n_layers: 1}")
    with pytest.raises(WeightsError, match="gpt2 train"):
        sources.fetch(sources.resolve(str(path)))


def test_weights_of_another_size_than_the_config_are_refused(
    tiny_directory: Path, empty_cache: Path
) -> None:
    put_into_cache(empty_cache, "openai-community/gpt2", tiny_directory)
    with pytest.raises(WeightsError, match="n_layers is 2 instead of 12"):
        sources.fetch(sources.resolve("124M"))


def test_a_config_json_of_another_architecture_is_refused(
    tiny_directory: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_directory, tmp_path / "model"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        sources.resolve(str(copy)).config()
