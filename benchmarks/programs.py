"""The programs that peers.py measures: each one's own files, and how it is driven.

A program is a class of three methods over token ids. It is made in a process of its own, which
alone imports it; `serve` answers that process's requests. Decoding is timed without the prompt:
where the program keeps its KV cache between calls the prompt is read before the clock starts,
else the time to its first token is taken off.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

THREADS = os.cpu_count() or 1
CAPACITY = 1024  # GPT-2's context
CHECKPOINT = "checkpoint"  # where, in the working directory, our files and transformers' are


class Program(Protocol):
    """A running model."""

    def prefill(self, ids: list[int]) -> float:
        """Seconds to read a prompt and choose one token."""

    def decode(self, ids: list[int], new: int) -> tuple[float, list[int]]:
        """Seconds for each of `new` greedy tokens after a prompt, added up, and the tokens."""


class Stepping(ABC):
    """A program that keeps its KV cache between calls, so that tokens can be timed alone."""

    token: int  # the last one chosen

    @abstractmethod
    def prefill(self, ids: list[int]) -> float:
        """Forget everything, read a prompt and choose one token."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Read one more token; the most probable next one."""

    def decode(self, ids: list[int], new: int) -> tuple[float, list[int]]:
        self.prefill(ids)
        tokens = [self.token]
        started = time.perf_counter()
        for _ in range(new):
            tokens.append(self.step(tokens[-1]))
        return time.perf_counter() - started, tokens


class Generating(ABC):
    """A program whose one call reads the prompt and generates."""

    @abstractmethod
    def generate(self, ids: list[int], new: int) -> list[int]:
        """Exactly `new` greedy tokens."""

    def prefill(self, ids: list[int]) -> float:
        started = time.perf_counter()
        self.generate(ids, 1)
        return time.perf_counter() - started

    def decode(self, ids: list[int], new: int) -> tuple[float, list[int]]:
        first = self.prefill(ids)
        started = time.perf_counter()
        tokens = self.generate(ids, new + 1)
        return time.perf_counter() - started - first, tokens


class Gpt2cli(Stepping):
    """The decoder that `gpt2 generate` uses."""

    def __init__(self, directory: Path, precision: str) -> None:
        from gpt2cli.decoders import opening
        from gpt2cli.system.device import Placement

        placement = Placement("cpu", precision)
        self.decoder = opening.open_decoder(directory / CHECKPOINT, placement, CAPACITY)
        self.sequence = self.decoder.open()

    def prefill(self, ids: list[int]) -> float:
        started = time.perf_counter()
        self.held = 0
        self.token = self.feed(ids)
        return time.perf_counter() - started

    def step(self, token: int) -> int:
        return self.feed([token])

    def feed(self, ids: list[int]) -> int:
        """Read tokens after those read before; the most probable next one."""
        from gpt2cli.decoders.pages import Chunk

        logits = self.decoder.read([Chunk(self.sequence, self.held, ids)])
        self.held += len(ids)
        return int(logits[0].argmax())


class Transformers(Generating):
    """`model.generate` of transformers."""

    def __init__(self, directory: Path, precision: str) -> None:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(THREADS)
        self.model = GPT2LMHeadModel.from_pretrained(directory / CHECKPOINT).eval()
        self.model.generation_config.eos_token_id = None
        self.tensor = torch.tensor

    def generate(self, ids: list[int], new: int) -> list[int]:
        prompt = self.tensor([ids])
        mask = self.tensor([[1] * len(ids)])
        out = self.model.generate(prompt, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return out[0, len(ids) :].tolist()


class CTranslate2(Generating):
    """`Generator.generate_batch` of CTranslate2."""

    def __init__(self, directory: Path, precision: str) -> None:
        import ctranslate2

        files = directory / f"ctranslate2-{precision}"
        self.names = json.loads((files / "vocabulary.json").read_text())
        self.model = ctranslate2.Generator(
            str(files),
            compute_type={"fp32": "float32"}.get(precision, precision),
            inter_threads=1,
            intra_threads=THREADS,
        )

    def generate(self, ids: list[int], new: int) -> list[int]:
        (result,) = self.model.generate_batch(
            [[self.names[token] for token in ids]],
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            min_length=new,  # end-of-text cannot come before
            max_length=new,
        )
        return result.sequences_ids[0]


class LlamaCpp(Stepping):
    """llama.cpp's own C functions, as llama-cpp-python exposes them."""

    def __init__(self, directory: Path, precision: str) -> None:
        import llama_cpp

        self.c = llama_cpp
        quiet(llama_cpp)
        path = str(directory / f"{precision}.gguf").encode()
        self.model = llama_cpp.llama_model_load_from_file(
            path, llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CAPACITY
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.model or not self.context:
            raise RuntimeError(f"llama.cpp could not load {path.decode()}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )

    def feed(self, ids: list[int]) -> int:
        """Read tokens after those read before; the most probable next one."""
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            array = (self.c.llama_token * len(part))(*part)
            # Of a batch made this way, only the last token's logits are computed.
            if self.c.llama_decode(self.context, self.c.llama_batch_get_one(array, len(part))):
                raise RuntimeError("llama_decode failed")
        logits = self.c.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())

    def prefill(self, ids: list[int]) -> float:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), False)
        started = time.perf_counter()
        self.token = self.feed(ids)
        return time.perf_counter() - started

    def step(self, token: int) -> int:
        return self.feed([token])


@cache
def quiet(llama_cpp: Any) -> None:
    """Stop llama.cpp from writing its log to stderr, for the life of the process."""
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    quiet.kept = silent  # C keeps only the address


# What a user would write to see a first token. sys.argv: directory, precision, threads, prompt.
COLD_TRANSFORMERS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, precision, threads, prompt = sys.argv[1:]
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
directory, precision, threads, prompt = sys.argv[1:]
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
COLD_LLAMA_CPP = """
import sys
from llama_cpp import Llama
directory, precision, threads, prompt = sys.argv[1:]
model = Llama(f"{directory}/{precision}.gguf", n_ctx=1024, n_threads=int(threads), verbose=False)
print(model(prompt, max_tokens=1)["choices"][0]["text"])
"""


@dataclass(frozen=True)
class Entry:
    """A program in one precision of its weights."""

    program: str
    precision: str
    kind: Callable[[Path, str], Program]
    needs: tuple[str, ...] = ()  # modules
    cold: str = ""  # a script; ours is a command

    @property
    def name(self) -> str:
        return f"{self.program} {self.precision}"

    def cold_command(self, directory: Path, prompt: str) -> list[str]:
        """From a shell's prompt to a first token."""
        if self.cold:
            return [
                *(sys.executable, "-c", self.cold),
                *(str(directory), self.precision, str(THREADS), prompt),
            ]
        gpt2 = [sys.executable, "-m", "gpt2cli", "generate", prompt, "-n", "1"]
        return [*gpt2, "-m", str(directory / CHECKPOINT), "--precision", self.precision]


ENTRIES = (
    *(Entry("gpt2cli", precision, Gpt2cli) for precision in ("fp32", "int8", "int4")),
    Entry("transformers", "fp32", Transformers, ("transformers",), COLD_TRANSFORMERS),
    *(
        Entry("CTranslate2", precision, CTranslate2, ("ctranslate2",), COLD_CTRANSLATE2)
        for precision in ("fp32", "int8")
    ),
    *(
        Entry("llama.cpp", precision, LlamaCpp, ("llama_cpp", "gguf"), COLD_LLAMA_CPP)
        for precision in ("F32", "Q8_0", "Q4_0")
    ),
)


def peak_memory() -> int:
    """The most bytes this process ever held resident, files mapped into it included."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it forked
        lines: Iterable[str] = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def serve(entry: Entry, directory: Path, pipe: Connection) -> None:
    """Load a program, then answer requests until the pipe closes.

    Each answer is (True, result) or (False, message). The first tells of loading.
    """
    try:
        program = entry.kind(directory, entry.precision)
        pipe.send((True, None))
    except Exception as error:  # whatever a program raises, the others can still be measured
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    actions: dict[str, Callable[..., object]] = {
        "prefill": program.prefill,
        "decode": program.decode,
        "memory": peak_memory,
    }
    while True:
        try:
            action, *arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((True, actions[action](*arguments)))
        except KeyboardInterrupt:
            return
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
