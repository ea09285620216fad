"""The processes that train one model together, each with a device of its own.

Each computes the gradients of its slice of a step's batch. Without `shard` all hold the whole model
and add up their gradients (Li et al. 2020, "PyTorch Distributed", arXiv:2006.15704); with it each
holds a part of all weights, gradients and moments, and a block is put together while it computes
(Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277). What a run learns does not depend on how many
there are, but for the order of sums. A single process is a group that does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.system.device import limit_threads
from gpt2cli.threads import core_count
from gpt2cli.training.launch import LostProcessError
from gpt2cli.training.packing import Batch

T = TypeVar("T")
Loss = Callable[[GPT2, Batch], Tensor]

# Others wait as long for the first, which may have a large text to read. One that dies is noticed
# at once, by the connection or by whoever has begun it.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Group:
    """Process `rank` of `world`, of which `local` are on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 1
    shard: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, and speaks to people."""
        return self.rank == 0

    def sum(self, number: float) -> float:
        """The sum of a number over all processes."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def highest(self, number: float) -> float:
        """The highest of the numbers of all processes."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def _reduced(self, number: float, operation: Any) -> float:
        if self.world == 1:
            return number
        reduced = torch.tensor(number, dtype=torch.float64)  # in the host's memory: no GPU waits
        dist.all_reduce(reduced, operation)
        return float(reduced)

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, given to all. An error that it has is raised by all."""
        if self.world == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except GPT2CLIError as error:
                box[1] = error
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        if box[1] is not None:
            raise box[1]
        made: T = box[0]
        return made

    def learner(self, model: GPT2, loss: Loss) -> Callable[[Batch], Tensor]:
        """The loss of a batch, whose gradients `backward` averages over all processes.

        With `shard` the model's parameters become `DTensor`s, and it may still be on the CPU.
        """
        if self.world == 1 or self.shard:
            if self.shard:
                _shard(model)
            return lambda batch: loss(model, batch)
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(_Learner(model, loss), gradient_as_bucket_view=True)

    def accumulating(
        self, learner: Callable[[Batch], Tensor], more: bool
    ) -> AbstractContextManager[object]:
        """For each part of a step: gradients are sent with the last, after which come no `more`.

        Sharded gradients are sent at once, so that no process holds all of them.
        """
        if more and isinstance(learner, nn.parallel.DistributedDataParallel):
            return learner.no_sync()
        return nullcontext()

    @contextmanager
    def whole(self, model: GPT2) -> Iterator[None]:
        """All processes have all weights meanwhile, and use them alone; changes are forgotten."""
        if not self.shard:
            yield
            return
        parts = _parts(model)
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(part is not model, recurse=False)
                part.reshard()

    def settle(self, model: GPT2) -> None:
        """Free what a sharded model has put together to compute."""
        if self.shard:
            for part in _parts(model):
                part.reshard()

    def gathered(self, tensor: Tensor) -> Tensor:
        """All of a sharded tensor, in the first process's memory; others get their part."""
        if not self.shard or not hasattr(tensor, "full_tensor"):
            return tensor
        whole = tensor.full_tensor()
        return whole.cpu() if self.is_main else tensor.to_local()  # type: ignore[attr-defined, no-any-return]

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, which all have, on the device of another and sharded as that is."""
        tensor = tensor.to(like.device)
        if not self.shard:
            return tensor
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(tensor, like.device_mesh, like.placements)


ALONE = Group()


class _Learner(nn.Module):
    def __init__(self, model: GPT2, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


def _shard(model: GPT2) -> None:
    """Each block by itself; the embeddings, one of which is the head, stay until the backward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    kind = "cuda" if "nccl" in dist.get_backend_config() else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")


def _parts(model: GPT2) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def world_size() -> int:
    """How many processes the environment says there are, as torchrun does."""
    return _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1


def device_of(device: str) -> str:
    """The device of this process: of GPUs, that of its number on this machine."""
    several = world_size() > 1 and device == "cuda"
    return f"cuda:{_number('LOCAL_RANK')}" if several else device


@contextmanager
def joined(device: str, *, shard: bool = False, threads: int | None = None) -> Iterator[Group]:
    """The group that the environment describes, with what the cores allow of threads each.

    One process begins no group, and keeps its threads. When another process ends, the first raises
    `LostProcessError`, all others `SystemExit`. Raises `UsageError` for an incomplete environment.
    """
    world = world_size()
    if world == 1:
        if shard:
            raise UsageError("shard needs several devices", "shard", "devices")
        yield ALONE
        return
    rank, local, _ = map(_number, ("RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"))
    if not os.environ.get("MASTER_ADDR"):
        raise UsageError("MASTER_ADDR must be set where WORLD_SIZE is more than 1; use torchrun")
    limit_threads(threads or max(1, core_count() // local))
    is_ours = not dist.is_initialized()
    try:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        if is_ours:
            _begin_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
        yield Group(rank, world, local, shard)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        if rank:
            raise SystemExit(1) from error
        raise LostProcessError(
            "another process of this run has ended, and so does this one; resume goes on from "
            "what was saved last",
            "resume",
        ) from error
    if is_ours:
        dist.destroy_process_group()


def _begin_group(backend: str) -> None:
    """Meet the other processes.

    torchrun's store outlives those that it begins anew, and gloo would read in it where those that
    have ended could be reached: each time has keys of its own.
    """
    store, rank, world = next(rendezvous("env://"))
    own = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=_PATIENCE)


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error is about the connection to another process."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UsageError(f"{name} must be a number where WORLD_SIZE is more than 1; use torchrun")
    return int(value)
