"""Shards: written the same each time, read at any sample, and read by others as WebDataset."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.reports import stats, verify
from sfumato.data.samples import Sample, Subset
from sfumato.data.shard_writer import _free_name, as_stored, as_webp, write_shards
from sfumato.data.shards import ShardSet, index_path, open_shards
from sfumato.errors import DataError, InvalidRequest, OutputError
from support.made_data import Pictures, noise, pictures, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    source = pictures(25)
    return write_shards(source, as_stored(source), tmp_path / "set", name="test", samples_per_shard=10)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_picture(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def test_every_sample_comes_back(shards: ShardSet) -> None:
    source = pictures(25)
    assert [shard.samples for shard in shards.shards] == [10, 10, 5]
    assert len(shards) == 25
    for index in [24, 0, 10, 9, 13]:
        read, given = shards.sample(index), source.sample(index)
        assert (read.key, read.captions, read.fields["number"]) == (given.key, given.captions, index)
        assert same_picture(read.picture, given.picture)
        assert shards.record(index).captions == given.captions
        assert shards.picture_bytes(index) == source.picture_bytes(index)


@pytest.mark.parametrize("index", [-1, 25])
def test_there_are_no_other_samples(shards: ShardSet, index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} of 25"):
        shards.sample(index)


def test_the_same_source_makes_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    source = pictures(25)
    write_shards(source, as_stored(source), tmp_path / "again", name="test", samples_per_shard=10)
    assert contents(tmp_path / "again") == contents(tmp_path / "set")


def test_others_read_it_as_webdataset(shards: ShardSet) -> None:
    with tarfile.open(shards.shards[1].path) as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:4]] == ["010.png", "010.json", "011.png", "011.json"]
        fields = archive.extractfile(members[1])
        assert fields is not None
        assert json.load(fields) == {"captions": ["number 10"], "number": 10}


def test_the_manifest_has_each_shards_hash(shards: ShardSet) -> None:
    for shard in shards.shards:
        assert shard.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
        assert shard.bytes == shard.path.stat().st_size


def test_shards_of_others_are_scanned(shards: ShardSet, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in shards.shards:
        (bare / shard.path.name).write_bytes(shard.path.read_bytes())
    scanned = open_shards(bare)
    assert [scanned.record(i) for i in range(25)] == [shards.record(i) for i in range(25)]
    assert same_picture(scanned.sample(24).picture, shards.sample(24).picture)
    for number in range(3):
        assert scanned.rows(number).tobytes() == np.asarray(shards.rows(number)).tobytes()


def test_the_layout_of_img2dataset(tmp_path: Path) -> None:
    picture = pictures(1).picture_bytes(0)
    fields = json.dumps({"caption": "a cat", "key": "000000000", "width": 9}).encode()
    members = [("000000000.jpg", picture), ("000000000.json", fields), ("000000000.txt", b"a cat\n")]
    write_tar(tmp_path / "00000.tar", [*members, ("deep/one.seg.jpg", b"ignored"), ("deep/one.png", picture)])
    found = open_shards(tmp_path)
    assert [found.record(i).key for i in range(2)] == ["000000000", "deep/one"]
    assert found.record(0).captions == ("a cat",)
    assert found.sample(1).captions == ()


def test_captions_are_gathered_from_wherever_they_are(tmp_path: Path) -> None:
    fields = json.dumps({"captions": ["a cat", " ", ""], "caption": " one cat ", "text": "a cat"}).encode()
    members = [("a.png", pictures(1).picture_bytes(0)), ("a.json", fields), ("a.txt", b"\n one cat\nthe cat\n")]
    write_tar(tmp_path / "00000.tar", members)
    assert open_shards(tmp_path).record(0).captions == ("a cat", "one cat", "the cat")


def test_threads_and_processes_read_the_same(shards: ShardSet) -> None:
    expected = [shards.sample(i).picture.tobytes() for i in range(25)]
    again = pickle.loads(pickle.dumps(shards))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: again.sample(i % 25).picture.tobytes(), range(200))) == expected * 8
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert [sample.picture.tobytes() for sample in workers.map(shards.sample, range(25))] == expected


def test_a_set_encoded_again_is_nearly_the_same(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize((64, 64)))
    source = Pictures([Sample(key="a", captions=("a",), fields={}, picture=picture)])
    exact = write_shards(source, as_webp(source, 101), tmp_path / "exact", name="x").sample(0).picture
    assert same_picture(exact, picture)
    lossy = write_shards(source, as_webp(source, 90), tmp_path / "lossy", name="x").sample(0).picture
    assert lossy.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    seen = np.asarray(picture)[..., 3] > 0
    error = np.abs(np.asarray(lossy).astype(int) - np.asarray(picture))[seen]
    assert 0 < error.mean() < 3
    with pytest.raises(InvalidRequest, match="quality 102"):
        as_webp(source, 102)


def test_some_samples_in_an_order_of_ones_own(tmp_path: Path) -> None:
    source = pictures(6)
    written = write_shards(source, as_stored(source), tmp_path / "some", name="x", indices=[4, 1], samples_per_shard=1)
    assert [written.record(i).fields["number"] for i in range(2)] == [4, 1]
    subset = Subset(source, [4, 1])
    assert len(subset) == 2
    assert subset.record(0).captions == written.record(0).captions
    assert same_picture(subset.sample(1).picture, written.sample(1).picture)


@pytest.mark.parametrize("key", ["a.b", "folder/cat", "../up", "日本", "two words", ".", "50%"])
def test_keys_of_every_kind_become_plain_names(tmp_path: Path, key: str) -> None:
    source = Pictures([Sample(key=key, captions=("x",), fields={}, picture=noise(4, 4, 0))])
    written = write_shards(source, as_stored(source), tmp_path / "keys", name="x")
    with tarfile.open(written.shards[0].path) as archive:
        for name in archive.getnames():
            assert name.isascii()
            assert not set("/\\ ") & set(name)
            assert name.count(".") == 1
    assert written.record(0).captions == ("x",)


def test_a_key_that_comes_again_gets_the_next_free_number() -> None:
    """Also where another key has that number's name, and in a time that grows with the samples, not their square."""

    class Counted(set[str]):
        asked = 0

        def __contains__(self, name: object) -> bool:
            Counted.asked += 1
            return super().__contains__(name)

    taken, repeats, names = Counted(), Counter[str](), []
    for key in ("a~2", "a", "a", "b", "a~2", "a", *["c"] * 500):
        names.append(_free_name(key, taken, repeats))
        taken.add(names[-1])
    assert names[:6] == ["a~2", "a", "a~3", "b", "a~2~2", "a~4"]
    assert names[6:] == ["c", *(f"c~{number}" for number in range(2, 501))]
    assert Counted.asked == len(names) + 1  # a~2 was another's


def test_no_shard_without_samples(tmp_path: Path) -> None:
    source = pictures(3)
    with pytest.raises(DataError, match="no samples"):
        write_shards(source, as_stored(source), tmp_path / "none", name="x", indices=[])
    with pytest.raises(InvalidRequest, match="samples_per_shard 0"):
        write_shards(source, as_stored(source), tmp_path / "none", name="x", samples_per_shard=0)
    with pytest.raises(InvalidRequest, match="shards' name"):
        write_shards(source, as_stored(source), tmp_path / "none", name="../x")
    assert not (tmp_path / "none").exists()


def test_a_sample_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    long = Pictures([*pictures(3).samples, Sample(key="k" * 200, captions=(), fields={}, picture=noise(4, 4, 0))])
    with pytest.raises(DataError, match="200 bytes"):
        write_shards(long, as_stored(long), tmp_path / "long", name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_not_replaced_by_accident(shards: ShardSet, tmp_path: Path) -> None:
    source = pictures(2)
    with pytest.raises(OutputError, match="not empty"):
        write_shards(source, as_stored(source), tmp_path / "set", name="x")
    assert len(open_shards(tmp_path / "set")) == 25
    assert len(write_shards(source, as_stored(source), tmp_path / "set", name="x", overwrite=True)) == 2


def test_the_figures_of_a_set(shards: ShardSet) -> None:
    report = stats(shards)
    assert (report.samples, report.captions, report.without_caption, report.words_a_caption) == (25, 25, 0, 2)
    assert report.picture_bytes == sum(len(shards.picture_bytes(i)) for i in range(25))
    assert report.sizes == {(9, 7): 7, (10, 7): 6, (11, 7): 6, (12, 7): 6}
    assert report.median_size == (10, 7)
    assert report.modes == {"RGB": 13, "RGBA": 12}
    assert report.licenses == {"unknown": 25}


def test_verify_finds_what_is_wrong(shards: ShardSet, tmp_path: Path) -> None:
    assert verify(shards).whole
    path = shards.shards[1].path
    data = bytearray(path.read_bytes())
    offset = int(shards.rows(1)[3]["picture"][0])
    data[offset + 8 : offset + 24] = bytes(16)
    path.write_bytes(data)
    problems = verify(open_shards(tmp_path / "set")).problems
    assert any("test-00001.tar" in line and "SHA-256" in line for line in problems)
    assert any("'013'" in line and "picture" in line for line in problems)
    assert len(problems) == 2


def test_verify_finds_a_foreign_index_and_a_key_in_two_shards(tmp_path: Path) -> None:
    source = pictures(4)
    twice = write_shards(
        source, as_stored(source), tmp_path / "set", name="x", indices=[0, 1, 0, 3], samples_per_shard=2
    )
    assert [line for line in verify(twice).problems if "twice" in line] == [
        "sample '000' comes twice, as number 0 and 2: leave one out"
    ]
    swapped = write_shards(source, as_stored(source), tmp_path / "b", name="x", samples_per_shard=2)
    np.save(index_path(swapped.shards[0].path), np.load(index_path(swapped.shards[0].path))[::-1])
    assert any("not as its index says" in line for line in verify(open_shards(tmp_path / "b")).problems)


def test_a_set_that_takes_anothers_place_is_read_by_its_own_index(tmp_path: Path) -> None:
    source = pictures(4)
    first = write_shards(source, as_stored(source), tmp_path / "set", name="x", indices=[0, 2])
    assert first.record(1).key == "002"
    second = write_shards(source, as_stored(source), tmp_path / "set", name="x", indices=[2, 0], overwrite=True)
    assert first.shards[0].bytes == second.shards[0].bytes
    assert second.record(1).key == "000"
