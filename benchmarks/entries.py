"""What peers.py measures: each program in each precision of its weights, and how it starts cold."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

THREADS = os.cpu_count() or 1
CHECKPOINT = "checkpoint"  # where, in the working directory, our files and transformers' are
HERE = Path(__file__).resolve().parent.parent  # this checkout of gpt2cli
OURS = "gpt2cli"
CT2_TYPES = {"fp32": "float32"}  # where CTranslate2 calls a precision something else

# What a user would write to see a first token.
# sys.argv: directory, precision, threads, prompt, whether llama.cpp may repack weights.
COLD_TRANSFORMERS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, precision, threads, prompt, _ = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(directory + "/checkpoint")
model = AutoModelForCausalLM.from_pretrained(directory + "/checkpoint")
inputs = tokenizer(prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=1, do_sample=True, pad_token_id=0)
print(tokenizer.decode(out[0]))
"""
COLD_CTRANSLATE2 = """
import sys
import ctranslate2
from tokenizers import ByteLevelBPETokenizer
directory, precision, threads, prompt, _ = sys.argv[1:]
files = directory + "/checkpoint/"
tokenizer = ByteLevelBPETokenizer(files + "vocab.json", files + "merges.txt")
model = ctranslate2.Generator(
    f"{directory}/ctranslate2-{precision}",
    compute_type={"fp32": "float32"}.get(precision, precision),
    intra_threads=int(threads),
)
result = model.generate_batch(
    [tokenizer.encode(prompt).tokens], max_length=1, include_prompt_in_result=False
)
print(tokenizer.decode(result[0].sequences_ids[0]))
"""
# To be followed by what uses llama-cpp-python, which has no setting for this.
WITHOUT_REPACKING = """
import llama_cpp.llama_cpp as library
default = library.llama_model_default_params
def params():
    found = default()
    found.use_extra_bufts = False
    return found
library.llama_model_default_params = params
"""
COLD_LLAMA_CPP = f"""
import sys
from llama_cpp import Llama
directory, precision, threads, prompt, repack = sys.argv[1:]
if repack != "True":
    exec({WITHOUT_REPACKING!r})
model = Llama(
    f"{{directory}}/{{precision}}.gguf", n_ctx=1024, n_threads=int(threads), verbose=False
)
print(model(prompt, max_tokens=1)["choices"][0]["text"])
"""

COLD = {
    "transformers": COLD_TRANSFORMERS,
    "CTranslate2": COLD_CTRANSLATE2,
    "llama.cpp": COLD_LLAMA_CPP,
}
MODULES = {
    "transformers": ("transformers",),
    "CTranslate2": ("ctranslate2", "transformers"),
    "llama.cpp": ("llama_cpp", "gguf"),
}


@dataclass(frozen=True)
class Entry:
    """A program in one precision of its weights.

    Ours is that of a `checkout`, which may be another than this; `level` limits its engine's
    instructions. Without `repack` llama.cpp keeps its weights as they are in the file.
    """

    program: str
    precision: str
    checkout: Path = HERE
    level: str = ""
    repack: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is gpt2cli, of any checkout."""
        return self.program == OURS

    @property
    def name(self) -> str:
        """What results are filed under."""
        return f"{self.program} {self.precision}" + (" (baseline)" if self.checkout != HERE else "")

    @property
    def label(self) -> str:
        """What the table calls it."""
        return self.name if self.repack else f"{self.name}, not repacked"

    @property
    def missing(self) -> list[str]:
        """The modules that it needs and that are not installed."""
        needed = MODULES.get(self.program, ())
        return [name for name in needed if importlib.util.find_spec(name) is None]

    def environment(self, directory: Path) -> dict[str, str]:
        """That of its processes, which run in `checkout`; a baseline keeps its own codes."""
        codes = "codes" if self.checkout == HERE else "codes of the baseline"
        path = os.pathsep.join(filter(None, (str(self.checkout), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "HF_ASSETS_CACHE": str(directory / codes), "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **own}

    def cold_command(self, directory: Path, prompt: str) -> list[str]:
        """From a shell's prompt to a first token."""
        if self.is_ours:
            gpt2 = [sys.executable, "-m", "gpt2cli", "generate", prompt, "-n", "1"]
            return [*gpt2, "-m", str(directory / CHECKPOINT), "--precision", self.precision]
        return [
            *(sys.executable, "-c", COLD[self.program], str(directory), self.precision),
            *(str(THREADS), prompt, str(self.repack)),
        ]


ENTRIES = (
    *(Entry(OURS, precision) for precision in ("fp32", "bf16", "fp16", "int8", "int4")),
    Entry("transformers", "fp32"),
    *(Entry("CTranslate2", precision) for precision in ("fp32", "int8")),
    *(Entry("llama.cpp", precision) for precision in ("F32", "F16", "BF16", "Q8_0", "Q4_0")),
)


def select(*names: str) -> list[Entry]:
    """The entries of some programs or precisions, or so called. Raises `ValueError` for others."""
    for name in names:
        if not any(name in (entry.program, entry.precision, entry.name) for entry in ENTRIES):
            known = ", ".join(entry.name for entry in ENTRIES)
            raise ValueError(f"nothing is called {name!r}; there are {known}")
    return [e for e in ENTRIES if {e.program, e.precision, e.name} & set(names)]
