"""A tensor where it lies in a memory-mapped file: what every reader finds and `Checkpoint` reads."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import CheckpointError

MAX_DIMENSIONS = 32
MAX_TENSORS = 20_000  # Stable Diffusion v1 with EMA and optimiser states has about 4,000
MAX_NAME_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a tensor is, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes the values take when contiguous."""
        return prod(self.shape) * self.dtype.itemsize


ALIGNMENT = 64
"""Bytes on which torch's allocations begin. A mapping begins on a page: places in a file tell those in memory."""


@dataclass(frozen=True, slots=True)
class MappedPages:
    """Bytes `start` to `stop` of a mapping, which stays valid as long as this does."""

    mapping: mmap.mmap
    start: int
    stop: int

    def release(self) -> None:
        """Give the pages wholly within back to the system; what was written to them is lost."""
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = self.stop // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED, first, length)


class MappedFile:
    """A file mapped into memory, privately: what is written to a view never reaches the file. Raises `CheckpointError`
    for one that is empty or can't be read."""

    __slots__ = ("_streaming", "_views", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size == 0:
                    raise CheckpointError(f"{path}: the file is empty; download it again")
                self._views: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                # A second mapping for what is only passed through: its pages can be given back to the system at once,
                # which in the first would undo changes made to a view.
                self._streaming: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error

    def bytes(self, start: int, stop: int) -> bytes:
        """A copy of bytes `start` to `stop` (clipped to the file)."""
        return self._open(self._streaming)[start:stop]

    def elements(self, dtype: torch.dtype, start: int, count: int, *, streaming: bool = False) -> Tensor:
        """Elements from byte `start`, of shape (count,), as a view of the file; a copy if they aren't aligned for
        `dtype`."""
        mapping = self._open(self._streaming if streaming else self._views)
        if start % dtype.itemsize:
            raw = torch.frombuffer(mapping, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
            return raw.clone().view(dtype)
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=start)

    def forget(self, start: int, stop: int) -> None:
        """Give the memory of the streaming pages wholly within bytes `start` to `stop` back to the system."""
        MappedPages(self._open(self._streaming), start, stop).release()

    def pages(self, start: int, stop: int) -> MappedPages:
        """What lies behind a view of bytes `start` to `stop`."""
        return MappedPages(self._open(self._views), start, stop)

    def close(self) -> None:
        """Let go of the file. Tensors already read stay valid: each keeps the mapping alive."""
        self._views = self._streaming = None

    def _open(self, mapping: mmap.mmap | None) -> mmap.mmap:
        if mapping is None:
            raise CheckpointError(f"{self.path}: already closed; open it again to read from it")
        return mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file: `info`, and where the first element is (byte `start` of `file`), with strides in elements.

    Readers make these only after checking that every element lies within the file.
    """

    info: TensorInfo
    file: MappedFile
    start: int
    strides: tuple[int, ...]

    @property
    def is_aligned(self) -> bool:
        """Whether the tensor lies in the file as torch would lay it out in memory."""
        return self.start % ALIGNMENT == 0 and self.strides == contiguous_strides(self.info.shape)

    def read(self, dtype: torch.dtype | None = None, *, aligned: bool = False) -> Tensor:
        """The tensor, of the shape in `info`, in its own dtype as a view of the file, or converted, as a new tensor.

        `aligned` makes a new tensor too of what doesn't lie in the file as torch would lay it out.
        """
        shape = self.info.shape
        if 0 in shape:
            return torch.empty(shape, dtype=dtype or self.info.dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, self.strides, strict=True))
        copying = dtype is not None and dtype != self.info.dtype
        copying = copying or (aligned and not self.is_aligned)
        flat = self.file.elements(self.info.dtype, self.start, span, streaming=copying)
        tensor = flat.as_strided(shape, self.strides)
        if not copying:
            return tensor
        copy = tensor.to(dtype or self.info.dtype, copy=True, memory_format=torch.contiguous_format)
        del flat, tensor
        self.file.forget(self.start, self.start + span * self.info.dtype.itemsize)
        return copy


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor of this shape."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
