"""A plain training loop, as nanoGPT's train.py is one: what `train.py` compares with.

    python benchmarks/plain_loop.py '{"vocab_size": …}' BATCH STEPS PRECISION

Prints the median of tokens per second. Written anew after what nanoGPT does (its release of 2023,
model.py and train.py): attention by SDPA with dropout, a head over all tokens, AdamW by `foreach`
on a CPU, a loss read every ten steps. It computes in fp32 on CPUs; bf16 is by autocast.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import nullcontext
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

size, batch, steps, precision = json.loads(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
V, T, C, H = (size[k] for k in ("vocab_size", "context_length", "emb_dim", "n_heads"))
L, P, bias = size["n_layers"], size["drop_rate"], size["qkv_bias"]
torch.set_num_threads(2)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(C), nn.LayerNorm(C)])
        self.qkv, self.out = nn.Linear(C, 3 * C, bias), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C), nn.Dropout(P))
        self.drop = nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).split(C, dim=2)
        q, k, v = (t.view(*t.shape[:2], H, C // H).transpose(1, 2) for t in qkv)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=P, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).contiguous().view_as(x)))
        return x + self.mlp(self.norms[1](x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(V, C), nn.Embedding(T, C), nn.Dropout(P)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(L))), nn.LayerNorm(C)
        self.head = nn.Linear(C, V, bias=False)
        self.wte.weight = self.head.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.drop(self.wte(x) + self.wpe(torch.arange(x.shape[1])))
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.view(-1, V), y.view(-1))


folder = tempfile.TemporaryDirectory()
IDS = f"{folder.name}/ids"
np.random.default_rng(0).integers(0, V, 1 << 20).astype(np.uint16).tofile(IDS)


def get_batch() -> tuple[Tensor, Tensor]:
    data = np.memmap(IDS, dtype=np.uint16, mode="r")
    starts = torch.randint(len(data) - T, (batch,))
    x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
    return x, y


model = Model()
groups = [
    {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
    {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
speeds = []
for step in range(steps):
    began = time.perf_counter()
    x, y = get_batch()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        loss = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step % 10 == 0:
        loss.item()
    speeds.append(batch * T / (time.perf_counter() - began))
print(median(speeds[2:]))
