"""Interventions by name: what is understood, what is refused, and the way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt2cli.config.interventions import Interventions, Part
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import GPT2CLIError, UsageError

MODEL = ModelConfig(vocab_size=100, context_length=16, emb_dim=12, n_heads=3, n_layers=2)
STEER = {"towards": "a", "away": "b", "layer": 1}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("5.6", Part("head", 5, 6)),
        ("mlp.3", Part("mlp", 3)),
        ("attention.0", Part("attention", 0)),
        ("layer.11", Part("layer", 11)),
        ("position.3", Part("position", 3)),
    ],
)
def test_a_part_has_a_name(name: str, part: Part) -> None:
    assert Part.parse(name) == Part.parse(f" {name} ") == part
    assert str(part) == name


@pytest.mark.parametrize(
    "name", ["", "5", "5.6.7", "-1.2", "mlp", "mlp.x", "head.1", "5.", "mlp.-1", "٥.٦", "1e3.4"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot ablate"):
        Part.parse(name)
    with pytest.raises(UsageError, match="did you mean 'mlp'"):
        Part.parse("mpl.1")


def test_json_holds_all_of_it() -> None:
    plan = Interventions.of(["1.2", "mlp.0", "1.2"], "mean", "text", [STEER | {"first": 4}])
    assert list(map(str, plan.ablate)) == ["1.2", "mlp.0"]
    again: dict[str, Any] = json.loads(json.dumps(plan.as_dict()))
    assert Interventions.of(**again) == plan
    assert plan
    assert not Interventions()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ablate": ["2.0"]}, "there is no head 2.0: layers are 0 to 1"),
        ({"ablate": ["1.3"]}, "there is no head 1.3: the heads of a layer are 0 to 2"),
        ({"ablate": ["mlp.2"]}, "there is no mlp.2: layers are 0 to 1"),
        ({"ablate": ["position.16"]}, "there is no position.16: positions are 0 to 15"),
        ({"ablate": ["position.5"]}, "there is no position.5: the text has 5 tokens, from 0"),
        ({"ablate": [5.6]}, "ablate must be text, not 5.6"),
        ({"ablate_with": "noise"}, "ablate_with must be zero or mean, not 'noise'"),
        ({"ablate": ["1.1"], "ablate_with": "mean"}, "ablate_with mean needs a reference"),
        ({"steer": [STEER | {"layer": 2}]}, "cannot steer in layer 2: layers are 0 to 1"),
        ({"steer": [STEER | {"layer": -1}]}, "layer must be at least 0, not -1"),
        ({"steer": [STEER | {"first": -1}]}, "first must be at least 0, not -1"),
        (
            {"steer": [STEER | {"strength": float("nan")}]},
            "strength must be from -1,000,000 to 1,000,000, not nan",
        ),
        ({"steer": [{"towards": "a", "layer": 1}]}, "missing away"),
        ({"steer": [STEER | {"power": 3}]}, "unknown key 'power'"),
    ],
)
def test_what_a_model_has_not_is_said_in_a_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(GPT2CLIError) as error:
        Interventions.of(**given).check(MODEL, tokens=5)
    assert message in str(error.value)
    assert isinstance(error.value, UsageError)


def test_positions_matter_to_some() -> None:
    assert not Interventions.of(["1.1"], steer=[STEER]).names_positions
    assert Interventions.of(["position.0"]).names_positions
    assert Interventions.of(steer=[STEER | {"first": 2}]).names_positions
