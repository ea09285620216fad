"""The loss of the tokens to be learned, without ever holding the logits of all of them.

A token's logits and their gradient take more memory than all else that a model like 124M keeps of
it. So they are computed some tokens at a time, and turned into gradients of the hidden states and
of the head before the next: no logits are kept, and none are computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2cli.arrays import NDArray
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.training.packing import Batch

LOGITS_BYTES = 200_000_000  # for logits and what is made of them, at any time
# GPUs multiply matrices faster whose sides are multiples of this, as 50,257 is not.
MULTIPLES = {"cuda": 64}


def summed(model: GPT2, batch: Batch) -> Tensor:
    """The sum of the losses, in nats, of all tokens of a batch that are to be learned. → ()"""
    device = model.token_embedding.weight.device
    ids = _on(device, batch.ids)  # (B, T + 1)
    segments = None if batch.segments is None else _on(device, batch.segments)
    mask = None if batch.mask is None else torch.from_numpy(batch.mask)
    hidden = model.hidden(ids[:, :-1], segments=segments)
    return summed_loss(hidden, model.token_embedding.weight, ids[:, 1:], mask)[0]


def _on(device: torch.device, array: NDArray) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # copied while the host goes on
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def summed_loss(
    hidden: Tensor, head: Tensor, targets: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, int]:
    """Sum of the cross-entropies in nats of the targets that a mask keeps, and how many these are.

    `hidden` (B, T, C) are final hidden states and `head` (V, C) the token embedding; `targets`
    (B, T) int64 the tokens that follow. `mask` (B, T) bool is best in the host's memory, where
    counting does not wait for a GPU. The sum is in fp32 under autocast. Dividing it by the number
    of a whole step's targets makes accumulated gradients those of one large batch.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    if mask is not None:
        kept = mask.flatten().nonzero()[:, 0].to(hidden.device, non_blocking=True)
        hidden, targets = hidden[kept], targets[kept]
    learns = torch.is_grad_enabled()  # which it never is within the function
    total: Tensor = _SummedCrossEntropy.apply(hidden, head, targets, learns)  # type: ignore[no-untyped-call]
    return total, len(targets)


class _SummedCrossEntropy(torch.autograd.Function):
    """Σ log Σ exp(x W ᵀ) − x W ᵀ[target], whose gradients are computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, learns: bool) -> Tensor:
        """(N, C), (V, C), (N,) → ()"""
        device = hidden.device.type
        dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
        )
        wide = torch.promote_types(dtype, torch.float32)
        need_hidden, need_head = (learns and need for need in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_head = torch.zeros_like(head) if need_head else None
        V = len(head)
        weight = F.pad(head.to(dtype), (0, 0, 0, -V % MULTIPLES.get(device, 1)))
        total = torch.zeros((), dtype=wide, device=hidden.device)
        copies = wide.itemsize + (dtype.itemsize if dtype != wide else 0)
        size = max(1, LOGITS_BYTES // (len(weight) * copies))
        for begin in range(0, len(hidden), size):
            span = slice(begin, begin + size)
            x, own = hidden[span].to(dtype), targets[span, None]
            logits = (x @ weight.T).to(wide)
            logits[:, V:] = -torch.inf  # which no token has
            losses, scores = _softmax(logits, own)
            del logits  # whose memory is that of the scores
            total += losses.sum()
            scores = scores.scatter_add_(1, own, -torch.ones_like(losses)).to(dtype)
            if grad_hidden is not None:
                grad_hidden[span] = scores @ weight
            if grad_head is not None:
                _add_product(grad_head, scores[:, :V].T, x)
            del scores  # before the next ones
        ctx.gradients = grad_hidden, grad_head
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what was computed; it can be used once."""
        (grad_hidden, grad_head), ctx.gradients = ctx.gradients, None
        for known in (grad_hidden, grad_head):
            if known is not None:
                known.mul_(gradient)
        return grad_hidden, grad_head, None, None


def _softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies, and probabilities in the memory of the logits. → (N, 1), (N, V)"""
    own, highest = logits.gather(1, targets), logits.amax(dim=1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
    return total.log() + (highest - own), logits.div_(total)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to the total, in its memory where all are of one type."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
