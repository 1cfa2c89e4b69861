"""`sfumato data`: each command once as people use it, and what it says when it can't."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
import torch
from PIL import Image

from sfumato.data.moments import open_moments
from support.command_line import Cli, files_in
from support.made_data import emoji_set, noise


def photos(folder: Path, count: int = 5) -> Path:
    """A folder of pictures with captions beside them."""
    folder.mkdir()
    for i in range(count):
        noise(70 + i, 64, i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def test_encode_a_folder_and_go_on(cli: Cli, folder: Path) -> None:
    photos(folder / "photos")
    command = ["data", "encode", "photos", "latents", "--size", "64x32", "--part-samples", "2", "--batch", "2"]
    outcome = cli(*command)
    assert (outcome.code, outcome.lines) == (0, ["latents"])
    moments = open_moments(folder / "latents")
    assert [moments.record(i).captions for i in range(5)] == [(f"picture {i}",) for i in range(5)]
    before = {name: (folder / "latents" / name).read_bytes() for name in files_in(folder / "latents")}
    (folder / "latents" / "manifest.json").unlink()
    (folder / "latents" / "moments-00001.safetensors").unlink()
    document = json.loads(cli(*command, "--json").out)
    assert document["samples"] == 5 and document["path"] == "latents" and len(document["parts"]) == 3
    assert {name: (folder / "latents" / name).read_bytes() for name in files_in(folder / "latents")} == before
    other = cli(*command, "--precision", "bfloat16")
    assert other.code == 2 and "was made with precision float32, not bfloat16" in other.errors[0]


def test_encode_composed_scenes_and_token_ids(cli: Cli, folder: Path) -> None:
    emoji_set(folder / "emoji")
    outcome = cli("data", "encode", "emoji", "latents", "--scenes", "7", "--samples", "3", "--tokens", "pocket")
    assert outcome.code == 0
    moments = open_moments(folder / "latents")
    assert [moments.record(i).key for i in range(3)] == [f"scene-7-{i}" for i in range(3)]
    part, row = moments.locate(2)
    tokens = part.tokens(row)
    assert tokens is not None and len(tokens) == len(moments.record(2).captions)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere", "to"], 1, "nowhere is no folder"),
        (["empty", "to"], 1, "empty holds no pictures"),
        (["photos", "to", "--size", "big"], 2, "size 'big' must be one number of pixels, or two"),
        (["photos", "to", "--size", "65"], 2, "needs multiples of"),
        (["photos", "to", "--precision", "int8"], 2, "precision"),
        (["photos", "to", "--autoencoder", "nobody"], 2, "no model 'nobody'"),
        (["photos", "photos/0.png/to"], 1, "could not be made"),
        (["photos", "to", "--scenes", "1"], 2, "say how many with --samples"),
        (["wordless", "to"], 1, "has no caption"),
    ],
)
def test_encode_says_in_a_line_what_is_wrong(
    cli: Cli, folder: Path, arguments: list[str], code: int, words: str
) -> None:
    photos(folder / "photos", 1)
    (folder / "empty").mkdir()
    photos(folder / "wordless", 1)
    (folder / "wordless" / "0.txt").unlink()
    outcome = cli("data", "encode", *arguments)
    assert outcome.code == code
    assert len(outcome.errors) == 1 and words in outcome.errors[0]
    assert not (folder / "to" / "manifest.json").exists()


def test_from_a_folder_to_shards_and_what_is_said_of_them(cli: Cli, folder: Path) -> None:
    photos(folder / "photos")
    noise(70, 64, 0).save(folder / "photos" / "copy.png")
    (folder / "photos" / "copy.txt").write_text("the first one again")
    outcome = cli("data", "shard", "photos", "set", "--near-duplicates", "2", "--per-shard", "2")
    assert outcome.lines == ["set: 5 of 6 samples, 1 near-duplicates"]
    assert (
        json.loads(cli("data", "shard", "photos", "set", "--near-duplicates", "2", "--per-shard", "2", "--json").out)[
            "kept"
        ]
        == 5
    )
    assert cli("data", "verify", "set").lines == ["set: 5 samples, all well"]
    document = json.loads(cli("data", "stats", "photos", "--json", "--sheet", "sheet.png").out)
    assert (document["samples"], document["identical"], document["alike"]) == (6, 1, 1)
    assert document["sizes"]["70×64"] == 2 and document["longest_caption"] == 4
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 3 * 128 and sheet.height > 2 * 128
    tar = folder / "set" / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    damaged = cli("data", "verify", "set")
    assert damaged.code == 1 and "shard-00000.tar has changed since it was made" in damaged.lines[0]
    tar.write_bytes(data[:5000])
    cut = cli("data", "stats", "set")
    assert cut.code == 1 and "has 5000 bytes, not" in cut.errors[0]


def test_verify_and_stats_of_encoded_pictures(cli: Cli, folder: Path) -> None:
    photos(folder / "photos")
    cli("data", "encode", "photos", "latents", "--size", "32")
    assert cli("data", "verify", "latents").lines == ["latents: 5 samples, all well"]
    document = json.loads(cli("data", "stats", "latents", "--json").out)
    moments = open_moments(folder / "latents")
    rows = [moments.locate(i) for i in range(5)]
    means = torch.stack([part.moments(row)[0].float() for part, row in rows])
    spread = torch.stack([part.moments(row)[1].float().exp() for part, row in rows]).mean()
    assert document["latent_deviation"] == pytest.approx(float((means.var(correction=0) + spread).sqrt()), rel=1e-4)
    assert document["scaling_factor"] * document["latent_deviation"] == pytest.approx(1, rel=1e-4)
    part = folder / "latents" / "moments-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert cli("data", "verify", "latents").code == 1


def test_filter_shows_the_funnel(cli: Cli, folder: Path) -> None:
    duckdb.connect().execute(
        "COPY (SELECT 'http://x/' || i AS URL, i AS WIDTH, 2 * i AS HEIGHT, i / 100.0 AS SCORE FROM range(1000) t(i)) "
        "TO 'list.parquet' (FORMAT parquet)"
    )
    command = ["data", "filter", "list.parquet", "-o", "kept", "--preset", "laion-improved-aesthetics"]
    missing = cli(*command)
    assert missing.code == 1 and "--column aesthetics=NAME" in missing.errors[0]
    outcome = cli(*command[:-2], "--min-side", "512", "--aesthetics", "6", "--column", "aesthetics=SCORE")
    assert outcome.code == 0 and outcome.lines[-1] == "399 of 1000 rows, in kept"
    assert [line.split() for line in outcome.lines[-4:-2]] == [
        ["min", "side", "512", "488", "512"],
        ["aesthetics", "above", "6", "399", "601"],
    ]
    bad = cli(*command[:-2], "--column", "aesthetics")
    assert bad.code == 2 and "aesthetics=SCORE" in bad.errors[0]
    unknown = cli(*command[:-1], "laion9")
    assert unknown.code == 2 and "laion2B-en" in unknown.errors[0]
