"""Makes weight files byte by byte, so that tests can make them wrong in every way."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any


def torch_zip(pickle: bytes, storages: dict[str, bytes] | None = None, **entries: bytes) -> bytes:
    """A zip as `torch.save` lays it out, around any pickle and storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """LONG1, which holds any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def integers(*values: int) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 4) -> bytes:
    """A storage by persistent id."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    *,
    key: str = "0",
    kind: str = "FloatStorage",
    numel: int = 4,
) -> bytes:
    """`_rebuild_tensor_v2` of a view of a storage."""
    view = integer(offset) + integers(*shape) + integers(*strides)
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return function + b"(" + storage(key, kind, numel) + view + b"\x89ccollections\nOrderedDict\n)RtR"


def state_dict(*values: bytes) -> bytes:
    """A whole pickle: a dictionary w0, w1, … of the pickled values."""
    items = b"".join(text(f"w{index}") + value for index, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header (an object, or bytes as they are) and any claimed header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
