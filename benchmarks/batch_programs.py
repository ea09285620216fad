"""Many prompts of skewed lengths through other programs, each run a process of its own.

    python benchmarks/batch_programs.py PROGRAM PRECISION DIRECTORY WORKLOAD.json [plain]

The workload is a list of [token ids, tokens to generate]; all choose greedily and ignore the end of
text, each in the best way that it has: CTranslate2 drops rows that a callback ends, llama.cpp
decodes batches of the rows that are left, transformers computes a batch to its longest row. With
`plain` llama.cpp does not repack its weights, with which it dies on some CPUs.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from entries import CHECKPOINT, CT2_TYPES, THREADS
from programs import quiet

Workload = list[tuple[list[int], int]]


def transformers(directory: Path, _: str, work: Workload, plain: bool) -> int:
    import torch
    from transformers import GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

    torch.set_num_threads(THREADS)
    model = GPT2LMHeadModel.from_pretrained(directory / CHECKPOINT).eval()
    model.generation_config.eos_token_id = None
    longest = max(len(ids) for ids, _ in work)
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in work])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in work])
    wanted = torch.tensor([new for _, new in work])

    class Lengths(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return wanted <= ids.shape[1] - longest

    out = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=int(wanted.max()),
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([Lengths()]),
    )
    assert out.shape[1] == longest + int(wanted.max())
    return sum(new for _, new in work)


def ctranslate2(directory: Path, precision: str, work: Workload, plain: bool) -> int:
    import ctranslate2 as library

    files = directory / f"ctranslate2-{precision}"
    names = json.loads((files / "vocabulary.json").read_text())
    model = library.Generator(
        str(files),
        compute_type=CT2_TYPES.get(precision, precision),
        inter_threads=1,
        intra_threads=THREADS,
    )
    most = max(new for _, new in work)
    results = model.generate_batch(
        [[names[token] for token in ids] for ids, _ in work],
        max_batch_size=len(work),
        beam_size=1,
        sampling_topk=1,
        include_prompt_in_result=False,
        min_length=most,
        max_length=most,
        callback=lambda step: step.step + 1 >= work[step.batch_id][1],
    )
    counts = [len(result.sequences_ids[0]) for result in results]
    return sum(counts)


def llama_cpp(directory: Path, precision: str, work: Workload, plain: bool) -> int:
    import llama_cpp as c

    quiet(c)
    path = str(directory / f"{precision}.gguf").encode()
    loading = c.llama_model_default_params()
    loading.use_extra_bufts &= not plain
    model = c.llama_model_load_from_file(path, loading)
    settings = c.llama_context_default_params()
    settings.n_ctx = 32 * len(work) + sum(len(ids) + new for ids, new in work)
    settings.n_batch = settings.n_ubatch = 512
    settings.n_seq_max = len(work)
    settings.kv_unified = True
    settings.n_threads = settings.n_threads_batch = THREADS
    context = c.llama_init_from_model(model, settings)
    size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(512, 0, 1)

    def read(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Tokens as (sequence, position, id, whether logits are wanted); the choices after them."""
        chosen = []
        for begin in range(0, len(tokens), 512):
            part = tokens[begin : begin + 512]
            batch.n_tokens = len(part)
            for i, (sequence, position, token, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if c.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            for i, (_, _, _, wanted) in enumerate(part):
                if wanted:
                    logits = c.llama_get_logits_ith(context, i)
                    chosen.append(int(np.ctypeslib.as_array(logits, (size,)).argmax()))
        return chosen

    prompts = [
        (s, p, token, p == len(ids) - 1)
        for s, (ids, _) in enumerate(work)
        for p, token in enumerate(ids)
    ]
    last = dict(enumerate(read(prompts)))
    counts = dict.fromkeys(last, 1)
    while running := [s for s in last if counts[s] < work[s][1]]:
        step = [(s, len(work[s][0]) + counts[s] - 1, last[s], True) for s in running]
        for s, token in zip(running, read(step), strict=True):
            last[s] = token
            counts[s] += 1
        for s in running:
            if counts[s] == work[s][1]:
                memory = c.llama_get_memory(context)
                c.llama_memory_seq_rm(memory, ctypes.c_int32(s), -1, -1)
    return sum(counts.values())


PROGRAMS = {"transformers": transformers, "CTranslate2": ctranslate2, "llama.cpp": llama_cpp}


if __name__ == "__main__":
    program, precision, directory, workload, *plain = sys.argv[1:]
    work = json.loads(Path(workload).read_text())
    print(PROGRAMS[program](Path(directory), precision, work, bool(plain)))
