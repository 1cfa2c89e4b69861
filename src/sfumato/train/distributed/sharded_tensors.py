"""Tensors that FSDP has sharded: torch's `DTensor`s, of which each process has a part. Plain tensors are whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process has only a part of the tensor, of any shape."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor of any shape: all of it, unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, in its full shape. All processes must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Shard `tensor`, which every process has whole, as `example` of the same shape is, on the same device."""
    tensor = tensor.to(example.device)
    if not is_sharded(example):
        return tensor
    # torch.distributed.tensor takes seconds to import
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)
