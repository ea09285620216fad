"""Files of models: those that are shipped, and the mistakes that people make in their own."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.config.spec import CONFIG_DIR, Spec, find_spec, load_spec, shipped_specs
from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import ConfigError

BASE: dict[str, Any] = {
    "vocab_size": 100,
    "context_length": 16,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
}
TINY = ModelConfig(**BASE)
SHIPPED = sorted(CONFIG_DIR.glob("*.yaml"))


def spec_of(tmp_path: Path, text: str | bytes | dict[Any, Any]) -> Spec:
    """The spec in a file called model.yaml with this content."""
    path = tmp_path / "model.yaml"
    if isinstance(text, dict):
        text = yaml.safe_dump(text, allow_unicode=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_spec(path)


def written(**changes: object) -> str:
    """The small model as YAML, with keys changed, added or (given as None) left out."""
    values = {**BASE, **changes}
    return "".join(f"{key}: {value}\n" for key, value in values.items() if value is not None)


# --- shipped files ----------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_loads_as_it_is_written(path: Path) -> None:
    spec = load_spec(path)
    data = yaml.safe_load(path.read_text("utf-8"))
    assert spec.name == path.stem
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "qkv_bias"):
        assert getattr(spec.model, key) == data[key]
    assert spec.model.head_dim * spec.model.n_heads == spec.model.emb_dim
    for section, read in (("generation", spec.sampling), ("training", spec.training)):
        for key, value in data.get(section, {}).items():
            assert getattr(read, key) == value
    assert list(spec.aliases) == data.get("aliases", [])
    assert spec.repo_id == data.get("repo_id")


# Radford et al. 2019, table 2, with the parameters that the released checkpoints count.
SIZES = {
    "124M": (12, 768, 12, 124_439_808, "openai-community/gpt2"),
    "355M": (24, 1024, 16, 354_823_168, "openai-community/gpt2-medium"),
    "774M": (36, 1280, 20, 774_030_080, "openai-community/gpt2-large"),
    "1558M": (48, 1600, 25, 1_557_611_200, "openai-community/gpt2-xl"),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_four_sizes_are_those_of_the_release(name: str) -> None:
    n_layers, emb_dim, n_heads, parameters, repo_id = SIZES[name]
    spec = find_spec(name)
    assert spec is not None
    assert spec.model == ModelConfig(50257, 1024, emb_dim, n_heads, n_layers, 0.1, True, 1e-5)
    assert (spec.repo_id, spec.bundled) == (repo_id, False)
    width, layers = spec.model.emb_dim, spec.model.n_layers
    embeddings = (spec.model.vocab_size + spec.model.context_length) * width
    assert embeddings + layers * (12 * width**2 + 13 * width) + 2 * width == parameters


def test_the_bundled_model_says_so() -> None:
    spec = find_spec("bard")
    assert spec is not None
    assert spec.bundled
    assert spec.repo_id is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *[("gpt2", "124M"), ("small", "124M"), ("gpt2-medium", "355M"), ("medium", "355M")],
        *[("gpt2-large", "774M"), ("large", "774M"), ("gpt2-xl", "1558M"), ("xl", "1558M")],
        *[("1.5B", "1558M"), ("bard", "bard")],
    ],
)
def test_names_and_aliases_are_found_in_any_case(name: str, found: str) -> None:
    for written_so in (name, name.lower(), name.upper(), name.title(), found, found.lower()):
        spec = find_spec(written_so)
        assert spec is not None
        assert spec.name == found


@pytest.mark.parametrize("name", ["", "gpt", "125M", "../configs/124M", "124M.yaml", "a/b", "\0"])
def test_other_names_are_not_found(name: str) -> None:
    assert find_spec(name) is None


def test_a_name_longer_than_a_file_name_can_be_is_not_found() -> None:
    assert find_spec("a" * 300) is None


def test_no_two_models_share_a_name() -> None:
    names = [name.lower() for spec in shipped_specs() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


def test_the_shipped_models_come_smallest_first() -> None:
    specs = list(shipped_specs())
    assert len(specs) == len(SHIPPED)
    in_order = [spec.name for spec in specs if spec.name in {"bard", *SIZES}]
    assert in_order == ["bard", "124M", "355M", "774M", "1558M"]


# --- a file of one's own ----------------------------------------------------------------


def test_a_file_with_sizes_alone_gets_the_defaults(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, written())
    assert spec == Spec("model", TINY)
    assert spec.model.drop_rate == 0.1
    assert spec.model.qkv_bias
    assert spec.sampling == SamplingConfig()
    assert spec.training == TrainingConfig()


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_small_number_may_be_written_as_people_do(tmp_path: Path, text: str) -> None:
    spec = spec_of(tmp_path, written(layer_norm_eps=text) + f"training:\n  learning_rate: {text}\n")
    assert spec.model.layer_norm_eps == 1e-5
    assert spec.training.learning_rate == 1e-5


def test_a_whole_number_serves_as_a_number(tmp_path: Path) -> None:
    rate = spec_of(tmp_path, written(drop_rate=0)).model.drop_rate
    assert (rate, type(rate)) == (0.0, float)


def test_a_rule_is_switched_off_by_null(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, written() + "generation: {top_p: null, top_k: 40, temperature: 0}\n")
    assert spec.sampling == SamplingConfig(temperature=0, top_k=40)


@pytest.mark.parametrize("section", ["generation:", "training:", "aliases:", "repo_id:"])
def test_an_empty_section_is_as_good_as_none(tmp_path: Path, section: str) -> None:
    assert spec_of(tmp_path, written() + section) == Spec("model", TINY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (written(n_head=3), "unknown key 'n_head'; did you mean 'n_heads'?"),
        (written(EMB_DIM=3), "unknown key 'EMB_DIM'; did you mean 'emb_dim'?"),
        (written(zzz=1), "unknown key 'zzz'"),
        (written(emb_dim=None), "missing emb_dim"),
        ("emb_dim: 4", "missing vocab_size, context_length, n_heads, n_layers"),
        (written(n_layers="true"), "n_layers must be a whole number, not True"),
        (written(n_layers="2.0"), "n_layers must be a whole number, not 2.0"),
        (written(n_layers="two"), "n_layers must be a whole number, not 'two'"),
        (written(n_layers="~"), "n_layers must be a whole number, not None"),
        (written(n_layers="[2]"), "n_layers must be a whole number, not [2]"),
        (written(drop_rate="little"), "drop_rate must be a number, not 'little'"),
        (written(drop_rate="true"), "drop_rate must be a number, not True"),
        (written(drop_rate="{}"), "drop_rate must be a number, not {}"),
        (written(qkv_bias="1"), "qkv_bias must be true or false, not 1"),
        (written(qkv_bias="'true'"), "qkv_bias must be true or false, not 'true'"),
        (written(bundled="'no'"), "bundled must be true or false, not 'no'"),
        (written(bundled="~"), "bundled must be true or false, not None"),
        (written(emb_dim=13), "emb_dim must be a multiple of n_heads (3), not 13"),
        (written(drop_rate=1), "drop_rate must be at least 0 and below 1, not 1.0"),
        (written(drop_rate=-0.1), "drop_rate must be at least 0 and below 1, not -0.1"),
        (written(drop_rate=".nan"), "drop_rate must be at least 0 and below 1, not nan"),
        (written(layer_norm_eps=0), "layer_norm_eps must be above 0, not 0.0"),
        (written(n_heads=0), "n_heads must be at least 1, not 0"),
        (written(vocab_size=-1), "vocab_size must be at least 1, not -1"),
        (written(repo_id=7), "repo_id must be text such as owner/name, not 7"),
        (written(aliases="small"), "aliases must be a list of names, not 'small'"),
        (written(generation="hot"), "generation must be a section of keys, not 'hot'"),
        (written(training="[steps]"), "training must be a section of keys, not ['steps']"),
        (
            written(generation="{topp: 1}"),
            "generation: unknown key 'topp'; did you mean 'top_p'?",
        ),
        (written(generation="{top_p: 2}"), "generation: top_p must be above 0 and at most 1"),
        (written(generation="{top_k: 4.5}"), "generation: top_k must be a whole number, not 4.5"),
        (written(training="{steps: 0}"), "training: steps must be at least 1, not 0"),
        (written(training="{seed: '1'}"), "training: seed must be a whole number, not '1'"),
    ],
)
def test_a_mistake_is_reported_with_the_file_and_the_key(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(tmp_path, text)
    assert str(error.value).startswith(f"model.yaml: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"emb_dim: [1", "is not valid YAML"),
        (b"emb_dim: 1\n  n_heads: 2", "is not valid YAML"),
        (b"emb_dim: \x00", "is not valid YAML"),
        (b"!!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"# caf\xe9\nemb_dim: 4", "is not UTF-8 text (byte 5)"),
        (b"- emb_dim\n- 4", "must hold keys such as emb_dim: 768"),
        (b"", "must hold keys such as emb_dim: 768"),
        (b"just text", "must hold keys such as emb_dim: 768"),
        (b"a: " + b"[" * 60_000, "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_yaml_of_keys_is_named_on_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'model.yaml'} {message}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_a_directory_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read") as error:
            load_spec(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        written(drop_rate="2024-13-45"),
        written(drop_rate="1" + "0" * 400),
        written(drop_rate="1" + "0" * 5000),
        written(emb_dim="-0x" + "f" * 5000),
        written(drop_rate="!!float little"),
        written(qkv_bias="!!bool perhaps"),
        written(generation="{1: 2}"),
        written(training="{~: 2}"),
        written(generation="0"),
        written(generation="false"),
        written(training="[]"),
        written(aliases="0"),
        written(layer_norm_eps=".inf"),
        written(training="{learning_rate: .inf}"),
    ],
    ids=lambda text: text.splitlines()[-1][:30],
)
def test_a_rare_mistake_is_reported_like_any_other(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.yaml"):
        spec_of(tmp_path, text)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, datetime.date(2024, 2, 29), b"\xff", "1e-5", "gpt2"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=5,
)
KNOWN_KEYS = [f.name for kind in (ModelConfig, Spec) for f in dataclasses.fields(kind)]
SECTION = st.dictionaries(
    st.sampled_from(
        [f.name for k in (SamplingConfig, TrainingConfig) for f in dataclasses.fields(k)]
    ),
    JUNK,
    max_size=2,
)
CHANGES = st.dictionaries(
    st.sampled_from(KNOWN_KEYS) | st.text(max_size=5) | st.integers(), JUNK | SECTION, max_size=3
)


@settings(deadline=None, max_examples=300)
@given(base=st.just(BASE) | st.just({}), changes=CHANGES)
@example(base=BASE, changes={"generation": {1: 2}})
def test_junk_is_a_spec_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, base: dict[Any, Any], changes: dict[Any, Any]
) -> None:
    problem, spec = "", None
    try:
        spec = spec_of(tmp_path_factory.getbasetemp(), {**base, **changes})
    except ConfigError as error:
        problem = str(error)
    if spec is None:
        assert "model.yaml" in problem
    else:
        for field in dataclasses.fields(ModelConfig):
            assert type(getattr(spec.model, field.name)).__name__ == field.type


@settings(deadline=None, max_examples=150)
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_no_bytes_are_worse_than_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    with pytest.raises(ConfigError):
        spec_of(tmp_path_factory.getbasetemp(), content)


GIVEN = "vocab_size: 100\ncontext_length: 16\nemb_dim: 12\nn_heads: 3\nn_layers: 2\n"
BOMB = "  - &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize("place", ["aliases:", "temperature:", "repo_id:", "generation:"])
def test_aliases_of_aliases_are_refused_at_once(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match=r"out, without aliases$") as error:
        spec_of(tmp_path, f"{GIVEN}{place}\n{BOMB}".encode())
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GIVEN}n_layers: 5\n", r"key 'n_layers' is given twice \(line 6\)"),
        (f"{GIVEN}generation:\n  top_k: 1\n  top_k: 2\n", r"key 'top_k' is given twice \(line 8\)"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_of(tmp_path, text.encode())


@pytest.mark.parametrize("key", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"])
@pytest.mark.parametrize("size", ["99999999999", "0x" + "f" * 1000, str(10**30), str(10**400)])
def test_a_size_that_no_model_has_is_refused(tmp_path: Path, key: str, size: str) -> None:
    text = GIVEN.replace(f"{key}: ", f"{key}: {size} # ")
    with pytest.raises(ConfigError, match=rf"{key} must be at most [\d,]+, not \d") as error:
        spec_of(tmp_path, text.encode())
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("key", ["steps", "batch_size", "eval_interval", "warmup_steps", "seed"])
@pytest.mark.parametrize("size", ["99999999999999999999", "0x" + "f" * 1000])
def test_a_number_that_no_training_has_is_refused(tmp_path: Path, key: str, size: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} must be at most [\d,]+, not \d") as error:
        spec_of(tmp_path, f"{GIVEN}training: {{{key}: {size}}}".encode())
    assert len(str(error.value)) < 200


def test_a_long_value_is_cut_in_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(tmp_path, f"{GIVEN}repo_id: [{', '.join(['[a, b]'] * 1000)}]".encode())
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GIVEN}aliases: [{'x, ' * 30_000}]", "is too long to describe a model"),
        (f"{GIVEN}n_layers: 1{':59' * 300_000}", "is too long to describe a model"),
        (f"{GIVEN}x: 1{':59' * 300}.5", "is not valid YAML"),
        (f"{GIVEN}? {'k' * 10_000}\n: 1", "unknown key 'kkk"),
        (f"{GIVEN}? {'k' * 10_000}\n: 1\n? {'k' * 10_000}\n: 2", "is given twice"),
    ],
    ids=["list", "base 60", "float of base 60", "key", "key twice"],
)
def test_a_long_file_number_or_key_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(tmp_path, text)
    assert message in str(error.value)
    assert len(str(error.value)) < 300
