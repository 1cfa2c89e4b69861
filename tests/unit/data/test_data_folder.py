"""Folders of pictures as people keep them: captions beside the pictures, or in Hugging Face's metadata files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from sfumato.data.decoding import decode
from sfumato.data.folder import PictureFolder, open_folder
from sfumato.data.near_duplicates import perceptual_hash, without_near_duplicates
from sfumato.data.shard_writer import as_stored, write_shards
from sfumato.errors import DataError
from support.made_data import noise, png

ROWS = [("b.png", "a dog", 3), ("deep/a.JPG", "a cat, \"curled\"", 5)]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.png").write_bytes(png(noise(5, 4, 0, 4)))
    noise(6, 6, 1).save(tmp_path / "deep" / "a.JPG", "JPEG")
    return tmp_path


def write_jsonl(path: Path) -> None:
    rows = [{"file_name": name, "text": text, "score": score} for name, text, score in ROWS]
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")


def write_csv(path: Path) -> None:
    with (path / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("file_name", "text", "score"), *ROWS])


def write_parquet(path: Path) -> None:
    rows = ", ".join(f"('{name}', '{text}', {score}, DATE '2022-08-22')" for name, text, score in ROWS)
    table = f"SELECT * FROM (VALUES {rows}) t(file_name, text, score, day)"
    duckdb.connect().execute(f"COPY ({table}) TO '{path}/metadata.parquet' (FORMAT parquet)")


def write_beside(path: Path) -> None:
    (path / "b.txt").write_text("a dog\n", encoding="utf-8")
    (path / "deep" / "a.txt").write_text('\ufeffa cat, "curled"\n\n', encoding="utf-8")


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet, write_beside])
def test_pictures_and_captions_in_the_order_of_their_paths(folder: Path, write: object) -> None:
    assert callable(write)
    write(folder)
    found = open_folder(folder)
    assert [(found.record(i).key, found.record(i).captions) for i in range(len(found))] == [
        ("b", ("a dog",)),
        ("deep/a", ('a cat, "curled"',)),
    ]
    assert found.sample(0).picture.tobytes() == noise(5, 4, 0, 4).tobytes()
    assert found.sample(1).picture.size == (6, 6)
    assert found.picture_bytes(0) == (folder / "b.png").read_bytes()


def test_other_columns_come_along(folder: Path) -> None:
    write_jsonl(folder)
    assert open_folder(folder).record(0).fields == {"text": "a dog", "score": 3}
    (folder / "metadata.jsonl").unlink()
    write_csv(folder)
    assert open_folder(folder).record(0).fields == {"text": "a dog", "score": "3"}


def test_a_text_file_may_hold_several_captions(folder: Path) -> None:
    write_beside(folder)
    (folder / "b.txt").write_text(" a dog \n\na brown dog\na dog\n", encoding="utf-8")
    assert open_folder(folder).record(0).captions == ("a dog", "a brown dog")


def test_one_picture_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(noise(4, 4, 0)))
    (tmp_path / "cat.txt").write_text("a cat")
    found = open_folder(tmp_path)
    assert len(found) == 1
    shards = write_shards(found, as_stored(found), tmp_path / "shards", name="one")
    assert shards.sample(0).captions == ("a cat",)


def test_a_folder_becomes_shards(folder: Path, tmp_path: Path) -> None:
    write_jsonl(folder)
    found = open_folder(folder)
    shards = write_shards(found, as_stored(found), tmp_path / "shards", name="mine")
    assert [shards.record(i).captions for i in range(2)] == [found.record(i).captions for i in range(2)]
    assert shards.record(1).key == "deep%2Fa"
    assert shards.record(1).fields == {"captions": ['a cat, "curled"'], "score": 5}
    assert [shards.picture_bytes(i) for i in range(2)] == [found.picture_bytes(i) for i in range(2)]


def similar(tmp_path: Path) -> PictureFolder:
    """A picture, the same smaller and as a poor JPEG, and another one."""
    picture = Image.radial_gradient("L").convert("RGB")
    picture.paste((200, 30, 40), (20, 60, 120, 200))
    picture.save(tmp_path / "a.png")
    picture.resize((100, 100)).save(tmp_path / "b.png")
    picture.save(tmp_path / "c.jpg", quality=20)
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "d.png")
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
    return open_folder(tmp_path)


def test_near_duplicates_are_left_out(tmp_path: Path) -> None:
    found = similar(tmp_path)
    kept = without_near_duplicates([perceptual_hash(found.sample(i).picture) for i in range(len(found))], 6)
    written = write_shards(found, as_stored(found), tmp_path / "shards", name="x", indices=kept)
    assert [written.record(i).key for i in range(len(written))] == ["a", "d"]


def test_pictures_are_decoded_upright_with_their_transparency(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    for kind in ("RGB", "RGBA"):
        picture = noise(3, 2, 0, len(kind))
        picture.save(tmp_path / "a.png", exif=exif)
        read = decode((tmp_path / "a.png").read_bytes(), "a.png")
        assert (read.mode, read.size) == (kind, (2, 3))
        assert read.tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()
    Image.new("L", (2, 2), 77).save(tmp_path / "a.png", transparency=77)
    assert decode((tmp_path / "a.png").read_bytes(), "a.png").getpixel((0, 0)) == (77, 77, 77, 0)


def test_metadata_in_each_split_as_imagefolder_has_it(tmp_path: Path) -> None:
    for split, number in (("train", 3), ("test", 5)):
        (tmp_path / split).mkdir()
        noise(5, 4, number).save(tmp_path / split / "a.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.png,{split} picture\n")
    dataset = open_folder(tmp_path)
    assert [dataset.record(i).captions for i in range(2)] == [("test picture",), ("train picture",)]
    assert [dataset.record(i).key for i in range(2)] == ["test/a", "train/a"]
    noise(5, 4, 9).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png is not in the metadata"):
        open_folder(tmp_path)


def test_pictures_without_captions_where_none_are_needed(tmp_path: Path) -> None:
    noise(5, 4, 0).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has no caption"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, captions_required=False).record(0).captions == ()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": " "}')
    with pytest.raises(DataError, match="no caption in the metadata"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, captions_required=False).record(0).captions == ()
