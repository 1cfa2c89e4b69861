"""What the pickle interpreter builds: plain data that describes tensors, and checks of what it describes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch

from sfumato.weights.mapped_file import MAX_DIMENSIONS

MAX_SIZE = 2**48  # of anything that counts elements

STORAGES: Final[dict[str, torch.dtype]] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Name:
    """An allowed global, which stands for itself only."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Inert:
    """Something that is neither a tensor nor a plain container and doesn't matter: a NumPy scalar, a dtype."""


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage by its key in the file, with its size in elements."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage whose every element was checked to lie inside. `offset` and `strides` count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def view_problem(storage: StorageRef, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> str | None:
    """What is wrong with such a view of the storage, None if every element lies inside and none is repeated to grow."""
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        return f"has {len(shape)} sizes and {len(strides)} strides"
    for value in (offset, *shape, *strides):  # before any of them is put into a message: its text could be huge
        if type(value) is not int or not 0 <= value <= MAX_SIZE:
            return f"has among offset, sizes and strides {describe(value)}, not a count to 2^48"
    described = f"has shape {str(shape)[:80]}, strides {str(strides)[:80]}, offset {offset}"
    if prod(max(size, 1) for size in shape) > MAX_SIZE:
        return f"{described}: absurdly large"
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.numel:
        return f"{described} in a storage of {storage.numel} elements: outside it"
    if prod(shape) > storage.numel:
        return f"{described} in a storage of {storage.numel} elements: it repeats them to grow"
    return None


KINDS: Final[dict[type, str]] = {
    list: "a list",
    tuple: "a tuple",
    dict: "a dictionary",
    Inert: "plain data",
    StorageRef: "a storage",
    TensorRef: "a tensor",
}


def describe(value: Any) -> str:
    """A value from the file in a few words: its own text could be huge."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, (int, float, type(None))):
        return str(value)[:40]
    return KINDS.get(type(value), "something else")
