"""How weights become decoders: which computes where, and what a full disk costs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from helpers import Run, needs_engine


@needs_engine
@pytest.mark.parametrize("command", ["generate -n 1 A", "score --text ROMEO:", "repl"])
def test_verbose_says_why_weights_are_quantized_on_every_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_main: Run
) -> None:
    arguments = (*command.split(), "-m", "bard", "--precision", "int4", "-v")
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
