"""The files of the comparison: random weights, and what other programs make of them.

    python benchmarks/convert.py DIRECTORY PROGRAM PRECISION...

peers.py runs each conversion in a process of its own, so that no memory of it stays.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from entries import CHECKPOINT, CT2_TYPES, HERE, THREADS, Entry
from rich.console import Console

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.training.corpus import train_vocabulary
from gpt2cli.weights import checkpoint, exporting
from gpt2cli.weights.random_weights import RandomWeights
from gpt2cli.weights.safetensors import StoredTensor

VOCABULARY = HERE.parent / "shared" / "data"
END_OF_TEXT = 50256
NOISE = 0.05


def prepare(directory: Path, entries: Sequence[Entry], size: str = "124M") -> list[Entry]:
    """Write every program's files; those that can be measured. A notice says what is left out."""
    write_checkpoint(size, directory / CHECKPOINT)
    refused: dict[str, str] = {}
    for program in dict.fromkeys(entry.program for entry in entries):
        found = [entry for entry in entries if entry.program == program]
        if missing := found[0].missing:
            refused[program] = f"{' and '.join(missing)} not installed"
        elif program in CONVERTERS:
            command = [sys.executable, __file__, str(directory), program]
            command += [entry.precision for entry in found]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
            if done.returncode:
                refused[program] = (done.stderr.splitlines() or ["no message"])[-1]
    for program, reason in refused.items():
        Console(stderr=True).print(f"{program} is left out: {reason}", markup=False)
    return [entry for entry in entries if entry.program not in refused]


def write_vocabulary(directory: Path) -> None:
    """OpenAI's vocabulary where it is at hand, else a small one, which loads faster."""
    directory.mkdir(exist_ok=True)
    if (VOCABULARY / "encoder.json").is_file():
        shutil.copy(VOCABULARY / "encoder.json", directory / "vocab.json")
        shutil.copy(VOCABULARY / "vocab.bpe", directory / "merges.txt")
    else:
        train_vocabulary("ROMEO: But soft, what light through yonder window? ", 300, directory)


def write_checkpoint(size: str, directory: Path) -> None:
    """Random weights in which a mistake of conversion shows, one tensor at a time.

    Weights as GPT-2 initialises them have no biases, and repeat one token for ever.
    """
    spec = find_spec(size)
    assert spec is not None
    write_vocabulary(directory)
    types = dict.fromkeys(RandomWeights(spec.model), "float32")
    checkpoint.write(spec.model, noisy(spec.model), types, directory, END_OF_TEXT)


def noisy(config: ModelConfig) -> Iterator[tuple[str, StoredTensor]]:
    """Weights whose blocks outweigh the embedding of the token itself."""
    random = np.random.default_rng(0)
    for name, weight in RandomWeights(config).items():
        if name.startswith("blocks."):
            weight += NOISE * random.standard_normal(weight.shape, dtype=np.float32)
        yield name, StoredTensor(weight, "float32")


def to_ctranslate2(directory: Path, precisions: Sequence[str]) -> None:
    """By its own converter."""
    from ctranslate2.converters import TransformersConverter

    for precision in precisions:
        converter = TransformersConverter(str(directory / CHECKPOINT))
        target = directory / f"ctranslate2-{precision}"
        converter.convert(str(target), quantization=CT2_TYPES.get(precision, precision))


def to_gguf(directory: Path, precisions: Sequence[str]) -> None:
    """F32 by our export, and from it all others by llama.cpp's own quantiser."""
    import llama_cpp
    from programs import quiet

    source = directory / "F32.gguf"
    exporting.to_gguf(directory / CHECKPOINT, source, "fp32")
    quiet(llama_cpp)
    for name in (name for name in precisions if name != "F32"):
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        settings.nthread = THREADS
        target = directory / f"{name}.gguf"
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
            raise RuntimeError(f"llama.cpp could not write {target}")
    if "F32" not in precisions:
        source.unlink()


CONVERTERS = {"CTranslate2": to_ctranslate2, "llama.cpp": to_gguf}


if __name__ == "__main__":
    CONVERTERS[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
