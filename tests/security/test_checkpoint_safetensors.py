"""Hostile and damaged safetensors files: one error, naming file and reason. The library's own reader agrees."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors

from sfumato.errors import CheckpointError, InvalidRequest, UnsafeCheckpoint
from sfumato.files import plain_name
from sfumato.weights.checkpoint import open_checkpoint
from support.hostile_files import safetensors as made


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


DATA = bytes(8)
GOOD = made({"w": entry()}, DATA)

HOSTILE = {
    "header of 2^63 bytes": made({"w": entry()}, DATA, length=2**63),
    "header of 2^64 - 1 bytes": made({"w": entry()}, DATA, length=2**64 - 1),
    "header longer than the file": made({"w": entry()}, DATA, length=5000),
    "header one byte short": made({"w": entry()}, DATA, length=len(json.dumps({"w": entry()})) - 1),
    "data cut off": GOOD[:-1],
    "data too long": GOOD + b"x",
    "header cut off": GOOD[:30],
    "only a length": GOOD[:8],
    "half a length": GOOD[:4],
    "not UTF-8": made(b'{"\xff\xfe": 1}'),
    "NaN in the header": made(b'{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', DATA),
    "Infinity in the header": made(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}', DATA),
    "a name twice": made(b"{%s,%s}" % ((b'"w": ' + json.dumps(entry()).encode(),) * 2), DATA),
    "a key twice": made(b'{"w": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', DATA),
    "nested ever deeper": made(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of 5000 digits": made(
        b'{"w": {"dtype": "F32", "shape": [' + b"1" * 5000 + b'], "data_offsets": [0, 8]}}', DATA
    ),
    "a list": made(b"{}" + b"[]"),
    "a number for an entry": made({"w": 1}, DATA),
    "no offsets": made({"w": {"dtype": "F32", "shape": [2]}}, DATA),
    "unknown dtype": made({"w": entry("F33")}, DATA),
    "a number for a dtype": made({"w": entry(32)}, DATA),
    "a list for a dtype": made({"w": entry(["F32"])}, DATA),
    "negative size": made({"w": entry(shape=[-2])}, DATA),
    "size of minus zero": made(b'{"w": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}'),
    "offset of minus zero": made(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-0, 8]}}', DATA),
    "half a character for a name": made(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', DATA),
    "half a character in metadata": made(
        b'{"__metadata__": {"a": "\\udc00"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', DATA
    ),
    "fractional size": made({"w": entry(shape=[2.0])}, DATA),
    "boolean size": made({"w": entry(shape=[2, True])}, DATA),
    "size that wraps": made({"w": entry(shape=[2**62 + 2, 4])}, DATA),
    "huge beside zero": made({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
    "a thousand dimensions": made({"w": entry(shape=[1] * 1000 + [2])}, DATA),
    "negative offsets": made({"w": entry(offsets=[-8, 0])}, DATA),
    "offsets backwards": made({"w": entry(offsets=[8, 0])}, DATA),
    "offsets beyond the file": made({"w": entry(offsets=[8, 16])}, DATA),
    "offsets of 2^63": made({"w": entry(offsets=[2**63 - 8, 2**63])}, DATA),
    "three offsets": made({"w": entry(offsets=[0, 4, 8])}, DATA),
    "size and bytes disagree": made({"w": entry(shape=[3])}, DATA),
    "overlapping": made({"a": entry(), "b": entry()}, DATA),
    "partly overlapping": made({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
    "a gap": made({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
    "a gap before the first": made({"w": entry(offsets=[8, 16])}, bytes(16)),
    "metadata of numbers": made({"__metadata__": {"a": 1}, "w": entry()}, DATA),
    "metadata as a list": made({"__metadata__": ["a"], "w": entry()}, DATA),
}
OURS_ONLY = {"a key twice", "a name twice", "huge beside zero", "a thousand dimensions"}  # the library lets these pass


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    if case not in OURS_ONLY:
        with pytest.raises(Exception, match=r".") as theirs, safetensors.safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - its object is no mapping
                opened.get_tensor(name)
        assert not isinstance(theirs.value, CheckpointError)


def test_the_same_file_without_the_trick_opens(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(made({"w": entry()}, struct.pack("<2f", 1, 2)))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w").tolist() == [1, 2]


OTHER_FILES = {
    "empty": (b"", "empty"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "neither safetensors nor"),
    "text": (b"hello", "neither safetensors nor"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_files_are_named_for_what_they_are(case: str, tmp_path: Path) -> None:
    data, reason = OTHER_FILES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(path)


TRAVERSAL = [
    "../secret.safetensors",
    "..\\secret.safetensors",
    "/etc/passwd.safetensors",
    "a/b.safetensors",
    "C:secret.safetensors",
    ".hidden.safetensors",
    "",
    "..",
    "nul.safetensors",
    "a\0b.safetensors",
    "a\nb.safetensors",
    "x" * 300 + ".safetensors",
    "model.py",
]


@pytest.mark.parametrize("shard", TRAVERSAL)
def test_shards_may_not_leave_their_folder(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.safetensors").write_bytes(GOOD)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(UnsafeCheckpoint, match=r"index\.json: refused: shard"):
        open_checkpoint(index)


@pytest.mark.parametrize("name", [*TRAVERSAL[:-1], " a", "a ", "a.", "CON", "lpt1.txt", "\ud800", "a\x7f"])
def test_plain_names_refuse_what_can_leave_a_folder(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^name "):
        plain_name(name)


@pytest.mark.parametrize("name", ["model.safetensors", "v1-4", "mo del", "模型", "console", "a..b"])
def test_plain_names_pass_unchanged(name: str) -> None:
    assert plain_name(name) == name


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"[]", "not an object"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": {"w": 1}}', "no weight_map"),
        (b'{"weight_map": {"w": "gone.safetensors"}}', "gone.safetensors is missing"),
        (b'{"weight_map": {"other": "model.safetensors"}}', "lacks the tensor 'other'"),
        (b'{"weight_map": ' + b'{"a":' * 100_000, "not JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_bad_indexes(index: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(index)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(path)
