"""Writes `.safetensors` files, one tensor at a time: the whole model is never in memory, half a file never on disk."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.files import atomic_write
from sfumato.weights.mapped_file import ALIGNMENT, TensorInfo
from sfumato.weights.safetensors_file import DTYPES

_LENGTH = "<Q"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    produce: Callable[[str], Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    variant: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write `tensors` to `path`, asking `produce(name)` for each when its turn comes. Returns the files written.

    `variant` "fp16" puts that into the names, where the Hub's libraries look for it: `….fp16.safetensors`.
    More than `max_shard_bytes` of them are split as the Hub's libraries do: `…-00001-of-00003.safetensors` and an index
    `….safetensors.index.json` beside them (one tensor larger than that has a shard to itself). Each file appears whole
    or not at all, the index last: where it is, every shard is. Where a shard can't get its name in the end, those that
    did remain without an index. Raises `OutputError` (exists already, disk full…), or `CheckpointError` when `produce`
    returns a shape or dtype other than announced.
    """
    for name, info in tensors.items():
        if info.dtype not in _NAMES:
            raise CheckpointError(f"{path}: tensor {name!r} is {info.dtype}, which safetensors can't hold here")
    shards = _split(tensors, max_shard_bytes)
    kind = f".{variant}" if variant else ""
    if len(shards) == 1:
        path = path.with_name(f"{path.stem}{kind}{path.suffix}")
        with atomic_write(path, overwrite=overwrite) as file:
            _write(file, path, shards[0], produce, metadata or {})
        return [path]
    numbers = [f"{i:05d}-of-{len(shards):05d}" for i in range(1, len(shards) + 1)]
    paths = [path.with_name(f"{path.stem}{kind}-{number}.safetensors") for number in numbers]
    index = path.with_name(f"{path.stem}.safetensors.index{kind}.json")
    with contextlib.ExitStack() as stack:
        # A stack closes backwards: the index, entered first, gets its name last, when every shard it lists is there.
        stack.enter_context(atomic_write(index, overwrite=overwrite)).write(_index(shards, paths))
        files = [stack.enter_context(atomic_write(shard_path, overwrite=overwrite)) for shard_path in paths]
        for file, shard_path, shard in zip(files, paths, shards, strict=True):
            _write(file, shard_path, shard, produce, metadata or {})
    return [*paths, index]


def _split(tensors: Mapping[str, TensorInfo], limit: int | None) -> list[dict[str, TensorInfo]]:
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in tensors.items():
        if limit is not None and shards[-1] and size + info.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.nbytes
    return shards


def _index(shards: list[dict[str, TensorInfo]], paths: list[Path]) -> bytes:
    weight_map = {name: path.name for shard, path in zip(shards, paths, strict=True) for name in shard}
    total = sum(info.nbytes for shard in shards for info in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


def _write(
    file: BinaryIO,
    path: Path,
    tensors: Mapping[str, TensorInfo],
    produce: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write one whole file, laid out so that a reader can use its memory map as it is.

    The header is padded until the numbers begin on `ALIGNMENT` bytes. Tensors that fill whole multiples of it come
    first and keep each other there; of the rest (a model has a handful, and small) the wider dtypes come first, so that
    each is aligned for its dtype.
    """
    ordered = sorted(
        tensors.items(), key=lambda item: (item[1].nbytes % ALIGNMENT > 0, -item[1].dtype.itemsize, item[0])
    )
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, info in ordered:
        end = position + info.nbytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    length = struct.calcsize(_LENGTH) + len(text)
    text += b" " * (-length % ALIGNMENT)
    file.write(struct.pack(_LENGTH, len(text)) + text)
    for name, info in ordered:
        _write_tensor(file, path, name, info, produce(name))


def _write_tensor(file: BinaryIO, path: Path, name: str, info: TensorInfo, tensor: Tensor) -> None:
    """Write the tensor in row-major order. A function of its own, so that nothing holds it when the next is made."""
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise CheckpointError(f"{path}: tensor {name!r} is {got} where {info.dtype} {info.shape} was announced")
    if tensor.numel():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        file.write(flat.numpy().data)
