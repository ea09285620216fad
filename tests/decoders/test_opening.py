"""From a name to a running model: precisions, and what is refused before weights are read."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Run

from gpt2cli.decoders import native, opening
from gpt2cli.errors import UsageError
from gpt2cli.system import estimate
from gpt2cli.system.device import Placement
from gpt2cli.weights import sources

CPU = Placement("cpu", "float32")


def test_a_precision_follows_a_colon(tiny_directory: Path, tmp_path: Path) -> None:
    bard = opening.parse_variant("bard:float32", "cpu")
    assert (bard.source.name, bard.placement) == ("bard", Placement("cpu", "float32"))
    odd = tmp_path / "a:model"
    odd.symlink_to(tiny_directory)
    assert opening.parse_variant(str(odd), "cpu").source.directory == odd
    assert opening.parse_variant(f"{odd}:bfloat16", "cpu").precision == "bfloat16"
    if native.available():
        coded = opening.parse_variant("bard:int8")
        assert (coded.quantize, coded.placement) == ("int8", Placement("cpu", "float32"))
    for name in ("bard:int3", "bard:fp32"):
        with pytest.raises(UsageError, match=f"unknown precision in '{name}'"):
            opening.parse_variant(name)


@pytest.mark.skipif(not native.available(), reason="the engine was not built")
def test_more_samples_than_memory_are_refused_by_what_their_precision_needs() -> None:
    bard, needed = sources.resolve("bard"), []
    for quantize in (None, "int8"):
        with pytest.raises(UsageError, match="ask for fewer samples") as refused:
            opening.open_decoder(bard, CPU, 1024, 10**7, 200, quantize)
        needed.append(float(str(refused.value).split(" need ")[1].split()[0].replace(",", "")))
    assert needed[1] < needed[0] / 2


def test_more_beams_than_memory_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    bard = sources.resolve("bard")
    unread = replace(bard, directory=tmp_path)
    with pytest.raises(UsageError, match=r"^10000000 beams .* GB are free; ask for fewer beams"):
        opening.check_memory(unread, CPU, None, 10**7, 3, beams=True)
    opening.check_memory(unread, CPU, None, 4, 3, beams=True)


@pytest.mark.skipif(not native.available(), reason="the engine was not built")
@pytest.mark.parametrize("command", ["generate -n 1 A", "score --text ROMEO:", "repl"])
def test_verbose_says_why_weights_are_quantized_on_every_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_main: Run
) -> None:
    arguments = (*command.split(), "-m", "bard", "--quantize", "int4", "-v")
    cache = tmp_path / "gpt2cli"
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    assert b"could not be kept" not in run_main(*arguments).stderr
    (file,) = cache.iterdir()
    file.write_bytes(b"of other weights")
    monkeypatch.setattr("gpt2cli.decoders.native.quantize.atomic", _full)
    done = run_main(*arguments)
    assert b"the int4 weights could not be kept in" in done.stderr


def _full(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_samples_are_counted_with_what_choosing_their_tokens_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bard = sources.resolve("bard")
    without = estimate.inference_bytes(bard.config(), "fp32", 32, 1000)
    monkeypatch.setattr("gpt2cli.system.machine.memory", lambda: (without, without))
    with pytest.raises(UsageError, match=r"1000 samples of up to 32 tokens need 0\.4 GB"):
        opening.check_memory(bard, CPU, None, 1000, 32)
