"""The checkpoint of the comparison in the formats of CTranslate2 and llama.cpp.

    python benchmarks/convert.py DIRECTORY PROGRAM

peers.py runs it in a process of its own, so that no memory of it stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

from programs import CHECKPOINT, THREADS, quiet

from gpt2cli.weights import exporting


def to_ctranslate2(directory: Path) -> None:
    """By its own converter, in fp32 and int8."""
    from ctranslate2.converters import TransformersConverter

    for precision, quantization in (("fp32", "float32"), ("int8", "int8")):
        converter = TransformersConverter(str(directory / CHECKPOINT))
        converter.convert(str(directory / f"ctranslate2-{precision}"), quantization=quantization)


def to_gguf(directory: Path) -> None:
    """F32 by our export, and from it Q8_0 and Q4_0 by llama.cpp's own quantiser."""
    import llama_cpp

    source = directory / "F32.gguf"
    exporting.to_gguf(directory / CHECKPOINT, source, "fp32")
    quiet(llama_cpp)
    for name in ("Q8_0", "Q4_0"):
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        settings.nthread = THREADS
        target = directory / f"{name}.gguf"
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
            raise RuntimeError(f"llama.cpp could not write {target}")


if __name__ == "__main__":
    {"CTranslate2": to_ctranslate2, "llama.cpp": to_gguf}[sys.argv[2]](Path(sys.argv[1]))
