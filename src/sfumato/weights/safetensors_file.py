"""Reads the header of a `.safetensors` file, trusting nothing in it.

Format: 8 bytes little-endian header length, a JSON object, then the tensors' bytes without gap or overlap
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import Any, NoReturn

import torch

from sfumato.errors import CheckpointError, UnsafeCheckpoint
from sfumato.weights.mapped_file import (
    MAX_DIMENSIONS,
    MAX_NAME_LENGTH,
    MAX_TENSORS,
    MappedFile,
    StoredTensor,
    TensorInfo,
    contiguous_strides,
)

# Python's objects for a JSON text can take twenty times its size; these two bounds keep it under 64 MB.
MAX_HEADER_BYTES = 4 * 2**20  # that of Stable Diffusion v1 has 0.15
MAX_HEADER_VALUES = 400_000

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(file: MappedFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read tensors by name, and the file's `__metadata__`. Raises `CheckpointError` naming file and reason,
    `UnsafeCheckpoint` where it is beyond the limits."""
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise UnsafeCheckpoint(f"{file.path}: its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    data_start = 8 + length
    if data_start > file.size:
        raise CheckpointError(
            f"{file.path}: cut off: the header needs {data_start} bytes and the file has {file.size}; download it again"
        )
    header = bounded_json(file.bytes(8, data_start), where=f"{file.path}: its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file.path}: __metadata__ in its header must map text to text")
    if len(header) > MAX_TENSORS:
        raise UnsafeCheckpoint(f"{file.path}: {len(header)} tensors; at most {MAX_TENSORS} are read")
    tensors = {name: _entry(file, name, entry, data_start) for name, entry in header.items()}
    _check_coverage(file, tensors, data_start)
    return tensors, metadata


def bounded_json(text: bytes, *, where: str) -> dict[str, Any]:
    """Parse the JSON object in `text`, with limits; `where` starts messages. Raises `CheckpointError`,
    `UnsafeCheckpoint` beyond the limits."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_HEADER_VALUES:
        raise UnsafeCheckpoint(f"{where} has more than {MAX_HEADER_VALUES} values")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise CheckpointError(f"{where} names {twice[:80]!r} twice")
        for text in (text for pair in pairs for text in pair if isinstance(text, str)):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise CheckpointError(f"{where} has half a character in {text[:80]!a}: it is not valid text")
        return mapping

    def whole(digits: str) -> int:
        if digits == "-0":  # 0 to Python, and no size to the format's own reader
            raise CheckpointError(f"{where} has the number -0, which is no size")
        return int(digits)

    def no_constant(name: str) -> NoReturn:
        raise CheckpointError(f"{where} has {name}, which is not JSON")

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique, parse_int=whole, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a {type(value).__name__}, not an object")
    return value


def _entry(file: MappedFile, name: str, entry: Any, data_start: int) -> StoredTensor:
    where = f"{file.path}: tensor {name[:80]!r}"
    if len(name) > MAX_NAME_LENGTH:
        raise UnsafeCheckpoint(f"{where}: a name of {len(name)} characters; at most {MAX_NAME_LENGTH}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: must have exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: dtype {str(entry['dtype'])[:40]!r} is unknown: use one of {', '.join(DTYPES)}")
    if not _is_sizes(entry["shape"]) or len(entry["shape"]) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where}: shape {str(entry['shape'])[:80]} must be a list of up to {MAX_DIMENSIONS} sizes from 0"
        )
    if not _is_sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        raise CheckpointError(f"{where}: data_offsets {str(entry['data_offsets'])[:80]} must be two positions from 0")
    info = TensorInfo(dtype=dtype, shape=tuple(entry["shape"]))
    first, last = entry["data_offsets"]
    if not first <= last <= file.size - data_start:
        raise CheckpointError(
            f"{where}: its bytes {first} to {last} are outside the {file.size - data_start} the file has; "
            "it is cut off or damaged: download it again"
        )
    if last - first != info.nbytes:
        raise CheckpointError(
            f"{where}: {last - first} bytes, where {entry['dtype']} of shape {list(info.shape)[:8]} needs {info.nbytes}"
        )
    if prod(max(size, 1) for size in info.shape) > 2**48:
        raise UnsafeCheckpoint(f"{where}: shape {str(list(info.shape))[:80]} is absurd")
    return StoredTensor(info=info, file=file, start=data_start + first, strides=contiguous_strides(info.shape))


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_coverage(file: MappedFile, tensors: dict[str, StoredTensor], data_start: int) -> None:
    """The format allows neither gaps nor overlaps; both have been used to hide things."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].info.nbytes)):
        if tensor.start != position:
            problem = "overlaps another" if tensor.start < position else "leaves unused bytes before it"
            raise CheckpointError(f"{file.path}: tensor {name[:80]!r} {problem}")
        position += tensor.info.nbytes
    if position != file.size:
        raise CheckpointError(f"{file.path}: {file.size - position} bytes at its end belong to no tensor")
