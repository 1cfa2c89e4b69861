"""The processes that train one model together, as torchrun starts them; most often there is one.

A process learns of the others from the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Whatever
concerns all of them, such as stopping or a failure, is agreed upon between two steps, so that none waits for another
that has gone.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.errors import InvalidConfig, PeerFailed, PeerGone

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

_MESHES: list[DeviceMesh] = []  # those that know the process group
_PATIENCE = timedelta(hours=2)  # the others wait so long while the first validates or writes


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among `size`, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, validates and speaks."""
        return self.rank == 0

    def shard(self, numbers: range) -> range:
        """This process's part of sample numbers, all parts being of one size; `InvalidConfig` where that can't be."""
        count, rest = divmod(len(numbers), self.size)
        if rest:
            raise InvalidConfig(
                f"run.batch / run.accumulate = {len(numbers)} samples don't divide among {self.size} processes: "
                f"choose a multiple of {self.size}"
            )
        return numbers[self.rank * count : (self.rank + 1) * count]

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any process has it. All processes must ask."""
        if self.size == 1:
            return list(flags)
        asked = torch.tensor(flags, dtype=torch.int32)
        with self.peers_watched():
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        return [bool(flag) for flag in asked]

    def all_or_fail(self, action: Callable[[], T]) -> T:
        """Do what all do now. Where it fails in some, the first of those raises its error, and the others `PeerFailed`:
        nobody goes on, and one message tells why."""
        if self.size == 1:
            return action()
        failure: Exception | None = None
        try:
            done = action()
        except PeerFailed:
            raise
        except Exception as error:
            failure = error
        if any(self.any([failure is not None])):
            failed = self.all_gather(failure is not None).index(True)
            if failure is not None and failed == self.rank:
                raise failure
            raise PeerFailed(f"process {self.rank} stopped, because process {failed} failed") from failure
        return done

    def all_reduce(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all processes of tensors of any shapes that all have under the same names, in one exchange."""
        if self.size == 1 or not tensors:
            return dict(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        with self.peers_watched():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
        return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}

    def broadcast(self, value: T) -> T:
        """Give every process the first one's value."""
        if self.size == 1:
            return value
        values = [value]
        with self.peers_watched():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        values = [value] * self.size
        if self.size > 1:
            with self.peers_watched():
                dist.all_gather_object(values, value)
        return values

    def broadcast_module(self, module: nn.Module) -> None:
        """Give `module` the first process's parameters and buffers."""
        if self.size > 1:
            with self.peers_watched():
                for tensor in (*module.parameters(), *module.buffers()):
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.detach().copy_(whole)

    def mesh(self) -> DeviceMesh:
        """The processes as FSDP wants them described."""
        # torch.distributed.tensor, which comes with it, takes seconds to import
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(self.device.type, (self.size,))
        _MESHES.append(mesh)
        return mesh

    @contextlib.contextmanager
    def peers_watched(self) -> Iterator[None]:
        """Turn what breaks here because another process has gone into `PeerGone`."""
        try:
            yield
        except dist.DistError as error:
            raise _gone(self) from error
        except RuntimeError as error:
            if self.size == 1 or "gloo" not in str(error):
                raise
            raise _gone(self) from error


def _gone(world: World) -> PeerGone:
    return PeerGone(
        f"process {world.rank} of {world.size} stopped, because another one has gone: see what ended that one, and "
        f"give the command again to go on from the newest checkpoint"
    )


def join_world(device: torch.device | None = None) -> World:
    """The processes that torchrun started, this one among them; or this process alone.

    A CUDA device without a number becomes that of the process's place on its machine.
    """
    device = device or torch.device("cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(device=device)
    cuda = device.type == "cuda"
    if cuda and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # as default arguments its functions keep the group that there is when it is imported, as DDP does
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def _leave() -> None:
    """End the process group, and with it gloo's threads, while Python is whole.

    After each exchange such a thread needs the interpreter's lock for a moment, to let go of its tensors; the process
    is aborted (std::terminate) if the interpreter shuts down just then. The threads end when nothing knows the group
    any more: what DDP leaves lies in a cycle of references, and torch's caches keep the meshes.
    """
    if dist.is_initialized():
        for mesh in _MESHES:
            getattr(mesh, "_pg_registry", {}).clear()  # torch has no public way to it
        gc.collect()
        dist.destroy_process_group()
