"""Shards and folders that are damaged or made to do harm: refused in one line that names the file, and cheaply."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.data import tar_index
from sfumato.data.folder import open_folder
from sfumato.data.moments import Part, part_path
from sfumato.data.reports import verify
from sfumato.data.shard_writer import as_stored, write_shards
from sfumato.data.shards import MANIFEST, index_path, open_shards
from sfumato.data.transforms import Preparation
from sfumato.errors import DataError
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.pocket.dataset.emoji import open_emoji
from sfumato.train.encoding.encode_dataset import encode_moments
from support.made_data import noise, pictures, png, write_tar

PICTURE = png(noise(6, 5, 0))


def refused(folder: Path) -> str:
    """The one line with which opening the shards and reading all of them fails."""
    with pytest.raises(DataError) as caught:
        shards = open_shards(folder)
        for index in range(len(shards)):
            shards.sample(index)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def whole_tar(folder: Path) -> bytes:
    path = write_tar(
        folder / "x.tar",
        [(f"{i}.{kind}", data) for i in range(3) for kind, data in [("png", PICTURE), ("json", b'{"caption": "c"}')]],
    )
    return path.read_bytes()


def test_a_folder_without_shards(tmp_path: Path) -> None:
    assert "no shards" in refused(tmp_path)


def test_an_empty_file_and_an_empty_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    assert "x.tar" in refused(tmp_path)
    write_tar(tmp_path / "x.tar", [])
    assert "holds no sample" in refused(tmp_path)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.7, 0.85])
def test_a_tar_cut_off_anywhere(tmp_path: Path, share: float) -> None:
    data = whole_tar(tmp_path)
    end = len(data.rstrip(b"\0"))
    (tmp_path / "x.tar").write_bytes(data[: int(end * share)])
    assert "x.tar" in refused(tmp_path)


def test_a_tar_cut_off_between_members(tmp_path: Path) -> None:
    data = whole_tar(tmp_path)
    offset = int(tar_index.scan(tmp_path / "x.tar")[2]["picture"][0]) - 512
    (tmp_path / "x.tar").write_bytes(data[:offset])
    assert f"cut off or damaged at byte {offset}" in refused(tmp_path)


def test_a_broken_header_within(tmp_path: Path) -> None:
    data = bytearray(whole_tar(tmp_path))
    offset = int(tar_index.scan(tmp_path / "x.tar")[1]["picture"][0]) - 512
    data[offset : offset + 100] = b"\xff" * 100
    (tmp_path / "x.tar").write_bytes(data)
    assert "damaged" in refused(tmp_path)


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("a.json", b"{}")], "'a' has no picture"),
        ([("a.txt", b"a cat")], "'a' has no picture"),
        ([("a.png", PICTURE), ("a.webp", PICTURE)], "two members"),
        ([("a.png", PICTURE), ("b.png", PICTURE), ("a.json", b"{}")], "'a'"),
        ([("a.png", PICTURE), ("b.png", PICTURE), ("a.png", PICTURE)], "'a' comes twice"),
        ([("a.png", b"not a picture")], "'a'"),
        ([("a.png", PICTURE[:60])], "'a'"),
        ([("a.png", b"")], "'a'"),
        ([("a.png", PICTURE), ("a.json", b"{")], "'a' is not JSON"),
        ([("a.png", PICTURE), ("a.json", b"[1]")], "'a' holds a list"),
        ([("a.png", PICTURE), ("a.json", b"[" * 100_000)], "'a' is not JSON"),
        ([("a.png", PICTURE), ("a.json", b'{"caption": 3}')], "'caption' must be text"),
        ([("a.png", PICTURE), ("a.json", b'{"captions": ["x", {}]}')], "'captions' must be text"),
        ([("a.png", PICTURE), ("a.txt", b"\xff\xfe\x00")], "not UTF-8"),
        ([(".png", PICTURE)], "before its first dot"),
        ([("b" * 1001 + ".png", PICTURE)], "before its first dot"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_used(tmp_path: Path, members: list[tuple[str, bytes]], what: str) -> None:
    write_tar(tmp_path / "x.tar", members)
    message = refused(tmp_path)
    assert what in message
    assert "x.tar" in message


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert "not a plain file" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "C:\\evil.png", "a/../../evil.png", "\x01\x02.png"]
)
def test_names_are_labels_and_never_paths(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "x.tar", [(name, PICTURE)])
    shards = open_shards(folder)
    written = write_shards(shards, as_stored(shards), tmp_path / "out", name="x")
    assert len(written) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "manifest.json", "out", "set", "x-00000.npy", "x-00000.tar", "x.tar",
    ]  # fmt: skip


def test_a_picture_that_would_fill_the_memory(tmp_path: Path) -> None:
    bomb = bytearray(PICTURE)
    bomb[16:24] = (2**20).to_bytes(4, "big") * 2
    write_tar(tmp_path / "x.tar", [("a.png", bytes(bomb))])
    refused(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_tar_with_any_bytes_changed_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(whole_tar(tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.tar").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        report = verify(open_shards(tmp_path))
    except DataError as error:
        assert "x.tar" in str(error)
    else:
        assert all("\n" not in line for line in report.problems)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=3000))
def test_anything_at_all_is_no_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    refused(tmp_path)


ENTRY = {"path": "x-00000.tar", "samples": 3, "bytes": 0, "sha256": ""}


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ({"format": 2, "shards": []}, "format 2"),
        ({"format": 1}, "lists no shards"),
        ({"format": 1, "shards": []}, "lists no shards"),
        ({"format": 1, "shards": [3]}, "is no shard"),
        ({"format": 1, "shards": [ENTRY | {"path": "../x.tar"}]}, "shard's name"),
        ({"format": 1, "shards": [ENTRY | {"path": "/dev/zero"}]}, "shard's name"),
        ({"format": 1, "shards": [ENTRY | {"samples": True}]}, "is no shard"),
        ({"format": 1, "shards": [ENTRY | {"samples": 0}]}, "0 samples"),
        ({"format": 1, "shards": [ENTRY | {"path": "gone.tar"}]}, "is missing"),
        ({"format": 1, "shards": [ENTRY]}, "bytes, not 0"),
    ],
)
def test_manifests_that_are_wrong(tmp_path: Path, manifest: Any, what: str) -> None:
    source = pictures(3)
    write_shards(source, as_stored(source), tmp_path / "set", name="x")
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (tmp_path / "set" / MANIFEST).write_text(text)
    assert what in refused(tmp_path / "set")


def test_indices_that_are_wrong(tmp_path: Path) -> None:
    source = pictures(3)
    path = index_path(write_shards(source, as_stored(source), tmp_path / "set", name="x").shards[0].path)
    rows = np.load(path)
    beyond, negative, huge = rows.copy(), rows.copy(), rows.copy()
    beyond["picture"][2] += 10**6
    negative["fields"][0] = (-512, 512)
    huge["picture"][1] = (2**62, 2**62)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(128)
    for number, bad in enumerate(
        [beyond, negative, huge, rows[:2], rows["key"], np.array([{}] * 3, object), None, header]
    ):
        # A stored index is mapped once for each hash that the manifest tells.
        manifest = json.loads((tmp_path / "set" / MANIFEST).read_text())
        manifest["shards"][0]["sha256"] = str(number)
        (tmp_path / "set" / MANIFEST).write_text(json.dumps(manifest))
        path.unlink(missing_ok=True)
        if isinstance(bad, bytes):
            path.write_bytes(bad)
        elif bad is not None:
            np.save(path, bad, allow_pickle=True)
        assert "x-00000.npy" in refused(tmp_path / "set")


def test_a_shard_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    source = pictures(3)
    shards = write_shards(source, as_stored(source), tmp_path / "set", name="x")
    path = shards.shards[0].path
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"x-00000.tar: sample '002' is cut off"):
        shards.sample(2)
    path.unlink()
    with pytest.raises(DataError, match=r"x-00000.tar: sample '000' can't be read"):
        shards.sample(0)


def test_another_set_is_not_the_emoji(tmp_path: Path) -> None:
    source = pictures(2)
    write_shards(source, as_stored(source), tmp_path / "set", name="x")
    with pytest.raises(DataError, match=r"sample '000' has no 'label'"):
        open_emoji(tmp_path / "set")


def folder_of(folder: Path, **files: bytes | str) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "no pictures"),
        ({"notes.md": "hello"}, "no pictures"),
        ({"a.png": PICTURE}, "a.png has no caption"),
        ({"a.png": PICTURE, "a.txt": " \n\n"}, "a.txt is empty"),
        ({"a.png": PICTURE, "a.txt": b"\xff\xfe"}, "not UTF-8"),
        ({"a.png": PICTURE, "a.jpg": PICTURE, "a.txt": "x"}, "another picture"),
        ({"a.png": PICTURE, "metadata.jsonl": "{"}, "line 1 is not JSON"),
        ({"a.png": PICTURE, "metadata.jsonl": "[]"}, "line 1 must be an object"),
        ({"a.png": PICTURE, "metadata.jsonl": '{"text": "x"}'}, "no 'file_name'"),
        ({"a.png": PICTURE, "metadata.jsonl": '{"file_name": "b.png", "text": "x"}'}, "a.png is not in the metadata"),
        ({"a.png": PICTURE, "metadata.jsonl": '{"file_name": "a.png"}'}, "no caption in the metadata"),
        ({"a.png": PICTURE, "metadata.jsonl": '{"file_name": "a.png", "text": 1}'}, "'text' must be text"),
        ({"a.png": PICTURE, "metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n' * 2}, "a second time"),
        ({"a.png": PICTURE, "metadata.csv": "file_name,text\na.png,x\n../../passwd,x"}, "no picture in this folder"),
        ({"a.png": PICTURE, "metadata.csv": b"file_name,text\n\xff"}, "not UTF-8"),
        ({"a.png": PICTURE, "metadata.csv": 'file_name,text\na.png,"open'}, "not a table"),
        ({"a.png": PICTURE, "metadata.csv": "file_name,text\na.png\n"}, "no caption in the metadata"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(tmp_path: Path, files: dict[str, bytes | str], what: str) -> None:
    with pytest.raises(DataError) as caught:
        open_folder(folder_of(tmp_path, **files))
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_picture_that_is_damaged_or_gone(tmp_path: Path) -> None:
    folder = open_folder(folder_of(tmp_path, **{"a.png": PICTURE[:50], "a.txt": "x", "b.png": PICTURE, "b.txt": "y"}))
    with pytest.raises(DataError, match=r"a\.png"):
        folder.sample(0)
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png doesn't exist"):
        folder.sample(1)


def test_a_tar_in_memory_is_as_large_as_its_file(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a.png")
    header.size = 2**40
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert "cut off" in refused(tmp_path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"size": "-1"}) as archive:
        member = tarfile.TarInfo("a.png")
        member.pax_headers = {"size": "-512"}
        archive.addfile(member)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    refused(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_encoded_pictures_with_any_bytes_changed_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = part_path(tmp_path, 0)
    if not (tmp_path / "whole").exists():
        torch.manual_seed(0)
        config = AutoencoderConfig(block_channels=(4, 4), layers_per_block=1, norm_groups=2)
        encode_moments(pictures(3), Autoencoder(config), tmp_path, preparation=Preparation(width=4, height=4))
        (tmp_path / "whole").write_bytes(path.read_bytes())
    changed = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        part = Part(path)
        for row in range(len(part)):
            part.moments(row), part.key(row), part.captions(row), part.pixels(row)
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)
