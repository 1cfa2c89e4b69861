"""Any data set to shards: what is left out, what goes where, and that a crash costs nothing."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from sfumato.data import shard_writer
from sfumato.data.buckets import bucket_of, make_buckets
from sfumato.data.removals import Removals, read_removals
from sfumato.data.resharding import ShardOptions, make_shards
from sfumato.data.samples import Sample
from sfumato.data.shards import open_shards
from sfumato.errors import Cancelled, DataError, InvalidRequest
from sfumato.progress import Cancellation
from support.made_data import Pictures, noise, pictures, png


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Flawed(Pictures):
    """One of whose pictures can't be read."""

    def sample(self, index: int) -> Sample:
        if index == 4:
            raise DataError("sample '004' is a damaged picture")
        return Pictures.sample(self, index)


def flawed() -> Flawed:
    """Twelve samples, six of which can be used: 0, 2, 5, 6, 8, 9."""
    samples = list(pictures(12).samples)
    samples[1] = dataclasses.replace(samples[1], captions=())
    samples[3] = dataclasses.replace(samples[3], fields={"url": "https://example.org/3"})
    samples[7] = dataclasses.replace(samples[7], fields={"sha256": hashlib.sha256(b"7").hexdigest()})
    samples[10] = dataclasses.replace(
        samples[10], picture=samples[5].picture.resize((40, 30), Image.Resampling.BICUBIC)
    )
    samples[11] = dataclasses.replace(samples[11], picture=samples[0].picture)
    return Flawed(samples)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "removals.txt").write_text(
        "https://example.org/3\n" + hashlib.sha256(b"7").hexdigest().upper() + "\n\nhttps://example.org/other\n"
    )
    report = make_shards(
        flawed(),
        tmp_path / "set",
        ShardOptions(samples_per_shard=4, near_duplicates=8),
        removals=read_removals(tmp_path / "removals.txt"),
    )
    assert report.left_out == {
        "unreadable": 1, "without a caption": 1, "on the list of removals": 2, "near-duplicates": 2,
    }  # fmt: skip
    shards = open_shards(tmp_path / "set")
    assert [shards.record(i).key for i in range(len(shards))] == ["000", "002", "005", "006", "008", "009"]
    assert [shard.samples for shard in shards.shards] == [4, 2] and report.kept == 6 and report.samples == 12
    assert shards.picture_bytes(2) == png(flawed().samples[5].picture)
    with_all = make_shards(flawed(), tmp_path / "all", ShardOptions(captions_required=False))
    assert with_all.kept == 11 and with_all.left_out == {"unreadable": 1}


def test_pictures_of_like_shape_lie_together(tmp_path: Path) -> None:
    sizes = [(100, 50), (50, 100), (64, 64), (90, 50), (70, 64)]
    samples = [
        Sample(key=str(i), captions=(f"picture {i}",), fields={}, picture=noise(width, height, i))
        for i, (width, height) in enumerate(sizes)
    ]
    report = make_shards(Pictures(samples), tmp_path / "set", ShardOptions(bucket_side=256, quality=101))
    buckets = make_buckets(256)
    expected: dict[str, list[str]] = {}
    for i, size in enumerate(sizes):
        bucket = bucket_of(*size, buckets)
        expected.setdefault(f"{bucket.width}x{bucket.height}", []).append(str(i))
    assert report.folders == {place: len(keys) for place, keys in expected.items()} and len(expected) > 2
    for place, keys in expected.items():
        shards = open_shards(tmp_path / "set" / place)
        assert [shards.record(i).key for i in range(len(shards))] == keys
        assert shards.sample(0).picture.tobytes() == samples[int(keys[0])].picture.tobytes()


@pytest.mark.parametrize("stop_after", range(6))
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = pictures(11), ShardOptions(samples_per_shard=2)
    make_shards(source, tmp_path / "whole", options)
    left = [stop_after]

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        original(*arguments)

    original = shard_writer._save
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_save", killed)
        patch.setattr("shutil.rmtree", lambda *arguments, **options: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            make_shards(source, tmp_path / "killed", options)
    assert len(list((tmp_path / "killed").glob("*.tar"))) == stop_after
    report = make_shards(source, tmp_path / "killed", options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert make_shards(source, tmp_path / "killed", options) == report


def test_what_was_seen_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.survey.SAMPLES_A_FILE", 10)
    source = pictures(23)
    stop, looked = Cancellation(), []

    class Counting(Pictures):
        def sample(self, index: int) -> Sample:
            looked.append(index)
            return Pictures.sample(self, index)

    counting = Counting(source.samples)
    with pytest.raises(Cancelled):
        make_shards(
            counting,
            tmp_path,
            on_progress=lambda event: stop.cancel() if event.step == 10 else None,
            cancellation=stop,
            workers=3,
        )
    assert sorted(looked) == list(range(10))
    looked.clear()
    assert make_shards(counting, tmp_path).kept == 23
    assert sorted(looked) == list(range(10, 23))


def test_other_options_and_sets_of_nothing_are_refused(tmp_path: Path) -> None:
    make_shards(pictures(3), tmp_path / "set")
    with pytest.raises(InvalidRequest, match="begun with other options"):
        make_shards(pictures(3), tmp_path / "set", ShardOptions(quality=90))
    with pytest.raises(InvalidRequest, match="begun with other samples"):
        make_shards(pictures(4), tmp_path / "set")
    with pytest.raises(InvalidRequest, match="begun with other removals"):
        make_shards(pictures(3), tmp_path / "set", removals=Removals(frozenset({"x"})))
    wordless = Pictures([dataclasses.replace(sample, captions=()) for sample in pictures(3).samples])
    with pytest.raises(DataError, match=r"none of 3 samples can be used \(3 without a caption\)"):
        make_shards(wordless, tmp_path / "nothing")
    assert list((tmp_path / "nothing").glob("*.tar")) == []
