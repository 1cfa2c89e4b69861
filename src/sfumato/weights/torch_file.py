"""Reads what `torch.save` wrote, the zip of today and the stream of torch before 1.6, without running any of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sfumato.errors import CheckpointError, UnsafeCheckpoint
from sfumato.weights.mapped_file import MAX_NAME_LENGTH, MAX_TENSORS, MappedFile, StoredTensor, TensorInfo
from sfumato.weights.pickle_machine import MAX_PICKLE_BYTES, PickleMachine
from sfumato.weights.pickle_values import Name, StorageRef, TensorRef
from sfumato.weights.zip_index import ZipEntry, read_zip_index

MAX_DEPTH = 32
MAX_NODES = 400_000
MAX_NAMES_LENGTH = 4 * 2**20  # of all tensors' names together

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_PICKLE_IN_ZIP = re.compile(r"[^/]+/data\.pkl")


def read_torch_zip(file: MappedFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read tensors by name, and no metadata. Raises `UnsafeCheckpoint` or `CheckpointError` naming file and reason."""
    entries = read_zip_index(file)
    pickles = [name for name in entries if _PICKLE_IN_ZIP.fullmatch(name)]
    if len(pickles) != 1:
        raise CheckpointError(f"{file.path}: a zip with {len(pickles)} files data.pkl; torch.save writes one")
    folder = pickles[0].removesuffix("data.pkl")
    if _small(file, entries, f"{folder}byteorder") not in (b"", b"little"):
        raise CheckpointError(f"{file.path}: written on a big-endian machine, which is not supported: save it again")
    pickle = entries[pickles[0]]
    if pickle.size > MAX_PICKLE_BYTES:
        raise UnsafeCheckpoint(f"{file.path}: its pickle has {pickle.size} bytes; at most {MAX_PICKLE_BYTES} are read")
    machine = PickleMachine(file.bytes(pickle.start, pickle.start + pickle.size), path=file.path)
    value = machine.run()
    if machine.position != pickle.size:
        raise machine.unsafe(f"{pickle.size - machine.position} bytes follow its pickle")
    starts = {key: _storage_start(machine, entries, folder, storage) for key, storage in machine.storages.items()}
    return _place(file, _named_tensors(machine, value), starts), {}


def read_torch_legacy(file: MappedFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read the older format: five pickles in a row, then each storage behind its number of elements. Raises
    `CheckpointError` or `UnsafeCheckpoint`."""
    program = file.bytes(0, MAX_PICKLE_BYTES)
    machine, magic = _run(file, program, None)
    if magic != _LEGACY_MAGIC:
        raise machine.unsafe(
            "a bare pickle, not a file of torch.save: save its tensors as .safetensors with the program it is from"
        )
    machine, version = _run(file, program, machine)
    if version != _LEGACY_VERSION:
        raise CheckpointError(
            f"{file.path}: not in version {_LEGACY_VERSION} of torch's old format, the only one that is known"
        )
    machine, system = _run(file, program, machine)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{file.path}: written on a big-endian machine, which is not supported: save it again")
    content, value = _run(file, program, machine)
    machine, keys = _run(file, program, content)
    if (
        not isinstance(keys, list)
        or set(map(_text_or_none, keys)) != set(content.storages)
        or len(keys) != len(content.storages)
    ):
        raise CheckpointError(f"{file.path}: its list of storages is not that of its tensors; download it again")
    starts: dict[str, int] = {}
    position = machine.position
    for key in keys:
        storage = content.storages[key]
        count = int.from_bytes(file.bytes(position, position + 8), "little")
        if count != storage.numel:
            raise CheckpointError(
                f"{file.path}: storage {key!r} has {count} elements where its tensors say {storage.numel}"
            )
        starts[key] = position + 8
        position += 8 + storage.numel * storage.dtype.itemsize
        if position > file.size:
            raise CheckpointError(
                f"{file.path}: cut off: storage {key!r} ends at byte {position} of {file.size}; download it again"
            )
    return _place(file, _named_tensors(content, value), starts), {}


def _run(file: MappedFile, program: bytes, previous: PickleMachine | None) -> tuple[PickleMachine, Any]:
    """Run the pickle behind the one `previous` ran, within what that left of the instructions allowed for a file."""
    if previous is None:
        machine = PickleMachine(program, path=file.path)
    else:
        machine = PickleMachine(program, path=file.path, start=previous.position, limit=previous.left)
    return machine, machine.run()


def _text_or_none(key: Any) -> str | None:
    return key if isinstance(key, str) else None


def _small(file: MappedFile, entries: Mapping[str, ZipEntry], name: str) -> bytes:
    """The content of a small entry, b"" where there is none (older files)."""
    entry = entries.get(name)
    return file.bytes(entry.start, entry.start + min(entry.size, 16)) if entry else b""


def _storage_start(machine: PickleMachine, entries: Mapping[str, ZipEntry], folder: str, storage: StorageRef) -> int:
    entry = entries.get(f"{folder}data/{storage.key}")
    if entry is None:
        raise machine.damaged(f"storage {storage.key!r} is not in the zip")
    if entry.size != storage.numel * storage.dtype.itemsize:
        raise machine.unsafe(f"storage {storage.key!r} claims {storage.numel} elements and has {entry.size} bytes")
    return entry.start


def _place(file: MappedFile, tensors: Mapping[str, TensorRef], starts: Mapping[str, int]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            info=TensorInfo(dtype=tensor.storage.dtype, shape=tensor.shape),
            file=file,
            start=starts[tensor.storage.key] + tensor.offset * tensor.storage.dtype.itemsize,
            strides=tensor.strides,
        )
        for name, tensor in tensors.items()
    }


def _named_tensors(machine: PickleMachine, root: Any) -> dict[str, TensorRef]:
    """Tensors by their path through dictionaries and lists, joined by dots; what lies in a top-level "state_dict" is
    named as if it were at the top. Everything that is not a tensor is passed over."""
    tensors: dict[str, TensorRef] = {}
    length = 0
    todo: list[tuple[str, int, Any]] = [("", 0, root)]
    seen = 0
    while todo:
        name, depth, value = todo.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise machine.unsafe(
                f"its containers are nested more than {MAX_DEPTH} deep or hold more than {MAX_NODES} things"
            )
        if isinstance(value, TensorRef):
            length += len(name)
            if not name:
                raise CheckpointError(f"{machine.path}: holds a single tensor without a name, not a model")
            if name in tensors:
                raise CheckpointError(f"{machine.path}: has two tensors named {name[:80]!r}")
            if len(tensors) >= MAX_TENSORS or length > MAX_NAMES_LENGTH or len(name) > MAX_NAME_LENGTH:
                raise machine.unsafe(f"more than {MAX_TENSORS} tensors, or names longer than {MAX_NAME_LENGTH}")
            tensors[name] = value
        elif children := _CHILDREN.get(type(value)):
            if len(todo) + len(value) > MAX_NODES:
                raise machine.unsafe(f"its containers hold more than {MAX_NODES} things")
            for key, child in children(value):
                if type(child) in _CHILDREN or isinstance(child, TensorRef):
                    strip = not name and key == "state_dict" and isinstance(child, dict)
                    todo.append(("" if strip else f"{name}.{key}" if name else key, depth + 1, child))
    return dict(reversed(tensors.items()))  # the stack gave them last first


def _entries(value: dict[Any, Any]) -> list[tuple[str, Any]]:
    return [(str(key) if isinstance(key, (str, int, Name)) else "?", child) for key, child in value.items()]


def _items(value: list[Any] | tuple[Any, ...]) -> list[tuple[str, Any]]:
    return [(str(index), child) for index, child in enumerate(value)]


_CHILDREN: dict[type, Callable[[Any], list[tuple[str, Any]]]] = {dict: _entries, list: _items, tuple: _items}
