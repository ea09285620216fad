"""What does not fit the memory is refused before anything is read."""

from __future__ import annotations

import tracemalloc

import pytest
from helpers import needs_engine

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.decoders.opening import open_random
from gpt2cli.errors import UsageError
from gpt2cli.system import estimate, memory
from gpt2cli.system.device import Placement

CPU = Placement("cpu", "fp32")
SPEC = find_spec("bard")
assert SPEC is not None
BARD = SPEC.model


def test_more_samples_than_memory_are_refused_by_what_their_precision_needs() -> None:
    needed = []
    for precision in ("fp32", "int8"):
        with pytest.raises(UsageError, match="ask for fewer samples") as refused:
            memory.check_rows(BARD, Placement("cpu", precision), 10**7, 200)
        needed.append(float(str(refused.value).split(" need ")[1].split()[0].replace(",", "")))
    assert needed[1] < needed[0] / 2


def test_on_a_cpu_the_cache_of_half_precision_is_counted_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available", lambda _: 10**8)
    room = {p: memory.batch_room(BARD, Placement("cpu", p))[1] for p in ("fp32", "bf16", "int8")}
    assert room["fp32"] == room["bf16"] < room["int8"]
    assert memory.batch_room(BARD, Placement("cuda", "bf16"))[1] > room["bf16"]


def test_more_beams_than_memory_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^10000000 beams .* GB are free; ask for fewer beams"):
        memory.check_beams(BARD, CPU, 10**7, 3)
    memory.check_beams(BARD, CPU, 4, 3)


def test_samples_are_counted_with_what_choosing_their_tokens_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = estimate.inference_bytes(BARD, "fp32", 32, 1000)
    monkeypatch.setattr("gpt2cli.system.machine.memory", lambda: (without, without))
    with pytest.raises(UsageError, match=r"1000 samples of up to 32 tokens need 0\.4 GB"):
        memory.check_rows(BARD, CPU, 1000, 32)


def test_one_sample_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2cli.system.machine.memory", lambda: (1, 1))
    memory.check_rows(BARD, CPU, 1, 32)
    with pytest.raises(UsageError, match=r"^bard with 1 sample of up to 32 tokens needs"):
        memory.check_random(BARD, CPU, 1, 32, "bard")


@needs_engine
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_random_weights_are_refused_where_what_they_hold_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    config, placement = ModelConfig(50_000, 64, 128, 4, 1), Placement("cpu", precision)
    tracemalloc.start()
    decoder = open_random(config, placement)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert decoder.pages == 2
    monkeypatch.setattr("gpt2cli.system.machine.memory", lambda: (held, held - 1))
    with pytest.raises(UsageError, match="choose a smaller model"):
        memory.check_random(config, placement, 1, 64, "mine")
