"""The memory of a run, before it begins and as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import BARD_SIZE

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import add_lora
from gpt2cli.training import fitting
from gpt2cli.training.state import Plan

LARGE = ModelConfig(50257, 1024, emb_dim=768, n_heads=12, n_layers=12)
# Two steps of training, in a process of its own, after what libraries take.
SCRIPT = """
import json, sys
from dataclasses import replace
import numpy as np
import torch
from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import add_lora, keep_frozen_as
from gpt2cli.system.machine import peak_memory
from gpt2cli.training import fitting
from gpt2cli.training.batches import Samples
from gpt2cli.training.corpus import Corpus
from gpt2cli.training.state import Plan
from gpt2cli.training.trainer import Trainer

size, batch, lora, checkpointing, precision = json.loads(sys.argv[1])
if checkpointing:
    fitting.save_memory()

def train(config):
    settings = TrainingConfig(batch_size=batch, activation_checkpointing=checkpointing)
    plan = Plan(config, settings, precision, lora=LoraConfig() if lora else None)
    model = GPT2(config).init_weights().train()
    model.checkpointing = checkpointing
    if lora:
        add_lora(model, plan.lora)
        if precision == "bf16":
            keep_frozen_as(model, torch.bfloat16)
    ids = np.arange(3 * config.context_length) % config.vocab_size
    batches = Samples(ids, config.context_length, batch, 0)
    run = Trainer(model, None, Corpus(batches, 1, 1, None, 1, ""), plan, None)
    for run.step in range(2):
        run._optimise()
    return fitting.needed(plan, config, "cpu")

train(ModelConfig(64, 8, 16, 2, 1))
before = peak_memory()
estimate = train(ModelConfig(*size))
print(estimate / (peak_memory() - before))
"""


def ratio(
    config: ModelConfig, batch: int, lora: bool, checkpointing: bool, precision: str
) -> float:
    """The estimate by the measured peak."""
    size = [config.vocab_size, config.context_length, config.emb_dim, config.n_heads]
    settings = [[*size, config.n_layers], batch, lora, checkpointing, precision]
    command = [sys.executable, "-c", SCRIPT, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is measured as Linux counts it")
@pytest.mark.parametrize("lora", [False, True])
def test_the_estimate_is_near_the_peak_of_a_small_model(lora: bool) -> None:
    assert ratio(BARD_SIZE, 16, lora, False, "fp32") == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is measured as Linux counts it")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("batch", "lora", "checkpointing"),
    [(1, False, False), (1, True, False), (2, False, True), (2, True, True)],
)
def test_the_estimate_is_near_the_peak_of_124m(
    batch: int, lora: bool, checkpointing: bool, precision: str
) -> None:
    assert ratio(LARGE, batch, lora, checkpointing, precision) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("targets", [("c_attn",), ("c_proj", "c_fc")])
def test_what_lora_trains_is_counted(targets: tuple[str, ...]) -> None:
    lora = LoraConfig(rank=3, targets=targets)
    model = add_lora(GPT2(BARD_SIZE), lora)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert fitting.trained_parameters(BARD_SIZE, lora) == counted


def with_memory(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(fitting, "available", lambda _: int(free))


@pytest.mark.parametrize(("free", "micro"), [(64e9, 8), (8e9, 4), (5.5e9, 2), (4e9, 1)])
def test_the_micro_batch_is_as_large_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, free: float, micro: int
) -> None:
    with_memory(monkeypatch, free)
    plan = Plan(LARGE, TrainingConfig(batch_size=16), base="124M")
    assert fitting.fitted(plan, LARGE, "cpu").training.micro_batch == micro


@pytest.mark.parametrize(
    ("free", "remedy"),
    [
        (3.5e9, "it fits with micro_batch_size 1"),
        (2.2e9, "it fits with activation_checkpointing"),
        (1.2e9, "it fits with lora and activation_checkpointing"),
        (0.2e9, "choose a smaller batch, context or model"),
    ],
)
def test_what_does_not_fit_is_told_what_would(
    monkeypatch: pytest.MonkeyPatch, free: float, remedy: str
) -> None:
    with_memory(monkeypatch, free)
    plan = Plan(LARGE, TrainingConfig(batch_size=16, micro_batch_size=16), base="124M")
    with pytest.raises(UsageError, match=rf"GB of memory and .* GB are free; {remedy}"):
        fitting.fitted(plan, LARGE, "cpu")
    lora = replace(plan, lora=LoraConfig())
    with pytest.raises(UsageError):
        fitting.fitted(lora, LARGE, "cpu")
