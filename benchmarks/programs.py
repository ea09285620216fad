"""The programs that peers.py measures, and how each is driven.

A program is a class of some methods over token ids, made for an `Entry` in a process of its own,
which alone imports it. Decoding is timed without the prompt: where the program keeps its KV cache
between calls the prompt is read before the clock starts, else the time to its first token is
taken off.
"""

from __future__ import annotations

import ctypes
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from entries import CHECKPOINT, CT2_TYPES, OURS, THREADS, Entry

CAPACITY = 1024  # GPT-2's context


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

    def __init__(self, directory: Path, entry: Entry) -> None:
        from gpt2cli.decoders import opening
        from gpt2cli.system.device import place

        if entry.level:
            hold_down(entry.level)
        placement = place("cpu", entry.precision)
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


def hold_down(level: str) -> None:
    """Limit the engine's instructions in this process, to one of its levels."""
    from gpt2cli.decoders.native import decoder

    decoder.EngineDecoder = partial(decoder.EngineDecoder, level=level)


class Transformers(Generating):
    """`model.generate` of transformers."""

    def __init__(self, directory: Path, entry: Entry) -> None:
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

    def __init__(self, directory: Path, entry: Entry) -> None:
        import ctranslate2

        files = directory / f"ctranslate2-{entry.precision}"
        self.names = json.loads((files / "vocabulary.json").read_text())
        self.model = ctranslate2.Generator(
            str(files),
            compute_type=CT2_TYPES.get(entry.precision, entry.precision),
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

    def __init__(self, directory: Path, entry: Entry) -> None:
        import llama_cpp

        self.c = llama_cpp
        quiet(llama_cpp)
        path = str(directory / f"{entry.precision}.gguf").encode()
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts &= entry.repack
        self.model = llama_cpp.llama_model_load_from_file(path, loading)
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


PROGRAMS: dict[str, Callable[[Path, Entry], Program]] = {
    OURS: Gpt2cli,
    "transformers": Transformers,
    "CTranslate2": CTranslate2,
    "llama.cpp": LlamaCpp,
}
