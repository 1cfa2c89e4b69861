"""`sfumato data`: each command once as people use it, and what it says when it can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Cli, files_in

from made_data import emoji_set, noise
from sfumato.data.moments import open_moments


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
