"""Arbitrary bytes where a weight file should be: one of our errors or a file that can be read, and nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import CheckpointError
from sfumato.weights.checkpoint import open_checkpoint
from support.hostile_files import integer, integers, safetensors, storage, tensor, text, torch_zip

thorough = settings(max_examples=400, deadline=None)

# Whole instructions, so that sequences of them get somewhere, and every single opcode byte.
INSTRUCTIONS = [
    *(bytes([opcode]) for opcode in range(256)),
    *(integer(value) for value in (0, 1, 3, -1, 2**40, 2**62)),
    *(integers(*values) for values in ((), (4,), (1,), (2, 2), (0, 3))),
    *(text(value) for value in ("", "a", "storage", "state_dict", "0", "os", "system")),
    *(b"q%c" % index for index in range(4)),
    *(b"h%c" % index for index in range(4)),
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"cnumpy\ndtype\n",
    b"cos\nsystem\n",
    storage(),
    tensor(),
    tensor((2, 2), (2, 1)),
    tensor((0, 3), (3, 1)),
]
programs = st.lists(st.sampled_from(INSTRUCTIONS), max_size=25).map(b"".join)


def open_and_read(data: bytes) -> bool:
    """Whether the file could be opened; every tensor that it says it has is read, in two ways."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(data)
        try:
            with open_checkpoint(path) as checkpoint:
                for name, info in checkpoint.tensors.items():
                    assert checkpoint.read(name).shape == checkpoint.read(name, torch.float16).shape == info.shape
        except CheckpointError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
            return False
        return True


@thorough
@given(program=programs, end=st.sampled_from([b"", b".", b"u.", b"s.", b"t.", b"R."]))
def test_random_pickles(program: bytes, end: bytes) -> None:
    open_and_read(torch_zip(b"\x80\x02" + program + end, {"0": bytes(16)}))


@thorough
@given(program=programs)
def test_random_legacy_files(program: bytes) -> None:
    magic = b"\x80\x02" + integer(0x1950A86A20F9469CFC6C) + b"." + integer(1001) + b"."
    open_and_read(
        magic + b"}" + text("little_endian") + b"\x88s." + program + b"." + b"]" + text("0") + b"a." + bytes(24)
    )


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "I8", "dtype"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "BOOL"]) | values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | values,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | values,
    }
)


@thorough
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "ŝ"]), entries | values, max_size=3),
    size=st.integers(0, 16),
)
def test_random_headers(header: dict[str, Any], size: int) -> None:
    open_and_read(safetensors(json.dumps(header).encode(), bytes(size)))


@thorough
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x02\0\0\0\0\0\0\0{}"]), data=st.binary(max_size=200))
def test_random_bytes(start: bytes, data: bytes) -> None:
    open_and_read(start + data)


def test_the_instructions_can_make_a_file_that_opens() -> None:
    """The fuzzing reaches the far end: these pieces, in the right order, are a model."""
    whole = b"}q\x00" + text("a") + tensor((2, 2), (2, 1)) + b"s"
    assert open_and_read(torch_zip(b"\x80\x02" + whole + b".", {"0": bytes(16)}))
