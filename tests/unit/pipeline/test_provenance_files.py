"""Saving pictures: whole or not at all, never over something, with marks other programs understand."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sfumato.errors import InvalidRequest, OutputError
from sfumato.pictures.pixels import pixels_sha256
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.metadata import parameters_of, read_provenance
from sfumato.pipeline.provenance import differences
from sfumato.pipeline.request import Request
from sfumato.pipeline.saving import encode_picture, next_path, picture_suffix, save_numbered, save_picture, slug
from support.recorded import record

SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", *[".avif"] * features.check("avif")]
PIXELS = np.array(Image.linear_gradient("L").resize((64, 48)).convert("RGB"))
RECORD = record(
    Request(prompt="a red heart", seed=7),
    width=64,
    height=48,
    pixels_sha256=pixels_sha256(PIXELS),
    watermark="too small",
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_picture_and_record(tmp_path: Path, suffix: str) -> None:
    path = save_picture(PIXELS, tmp_path / f"heart{suffix}", RECORD)
    saved = np.array(Image.open(path).convert("RGB"))
    assert np.abs(saved.astype(int) - PIXELS).max() <= (0 if suffix == ".png" else 8)
    assert read_provenance(path) == RECORD
    parameters = parameters_of(path.read_bytes(), path.name)
    assert parameters is not None and parameters.prompt == "a red heart"
    assert encode_picture(PIXELS, suffix, RECORD) == path.read_bytes()


def test_jpeg_keeps_colour_at_every_pixel() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = (200, 40, 40)
    stripes[:, 1::2] = (40, 40, 200)
    with Image.open(io.BytesIO(encode_picture(stripes, ".jpg"))) as picture:
        assert np.abs(np.array(picture).astype(int) - stripes).max() <= 16


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_xmp_says_that_an_algorithm_made_it(tmp_path: Path, suffix: str) -> None:
    with Image.open(save_picture(PIXELS, tmp_path / f"heart{suffix}", RECORD)) as picture:
        packet = picture.info["xmp"]
    text = packet if isinstance(packet, str) else packet.decode()
    term = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert f"<Iptc4xmpExt:DigitalSourceType>{term}</Iptc4xmpExt:DigitalSourceType>" in text
    assert "<xmp:CreatorTool>sfumato 0.1.0</xmp:CreatorTool>" in text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_picture_without_a_record_has_none(tmp_path: Path, suffix: str) -> None:
    path = save_picture(PIXELS, tmp_path / f"heart{suffix}")
    assert read_provenance(path) is None
    assert parameters_of(path.read_bytes(), path.name) is None


def test_the_record_hashes_the_pixels_a_reader_sees(tmp_path: Path) -> None:
    path = save_picture(PIXELS, tmp_path / "heart.png", RECORD)
    assert pixels_sha256(np.array(Image.open(path))) == RECORD.pixels_sha256


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "heart.png"
    path.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        save_picture(PIXELS, path)
    assert path.read_text() == "mine"
    save_picture(PIXELS, path, overwrite=True)
    assert np.array_equal(np.array(Image.open(path)), PIXELS)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failing_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError) as caught:
        save_picture(PIXELS, tmp_path / "heart.png", RECORD)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(OutputError):
            save_picture(PIXELS, folder / "heart.png")
        with pytest.raises(OutputError):
            save_numbered(PIXELS, folder, ".png", RECORD)


def test_numbers_go_on_from_the_highest(tmp_path: Path) -> None:
    assert save_numbered(PIXELS, tmp_path, ".png", RECORD).name == "00001-7-a-red-heart.png"
    assert save_numbered(PIXELS, tmp_path, ".webp", RECORD).name == "00002-7-a-red-heart.webp"
    (tmp_path / "00041-something-else.txt").write_text("")
    (tmp_path / "99-too-short.png").write_text("")
    assert next_path(tmp_path, 0, "", ".png").name == "00042-0.png"


def test_a_number_taken_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_numbered(PIXELS, tmp_path, ".png", RECORD)
    offered = iter([tmp_path / "00001-7-a-red-heart.png", tmp_path / "00002-7-a-red-heart.png"])
    monkeypatch.setattr("sfumato.pipeline.saving.next_path", lambda *_: next(offered))
    assert save_numbered(PIXELS, tmp_path, ".png", RECORD).name == "00002-7-a-red-heart.png"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red heart!", "a-red-heart"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\con\0|nul", "c-con-nul"),
        ("crème brûlée", "creme-brulee"),
        ("漢字", ""),
        ("word " * 20, "word-word-word-word-word-word-word-word"),
        ("x" * 100, "x" * 40),
        ("- -", ""),
    ],
)
def test_names_from_prompts_are_harmless(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_unknown_formats_are_refused_by_name() -> None:
    assert picture_suffix(".PNG") == ".png"
    for suffix in (".bmp", "", ".exe"):
        with pytest.raises(InvalidRequest, match=r"use \.png"):
            picture_suffix(suffix)


def test_a_record_too_long_for_a_jpeg_says_which_format_to_use() -> None:
    long = dataclasses.replace(RECORD, request=RECORD.request.replace(prompt="word " * 20_000))
    with pytest.raises(OutputError, match=r"save the picture as \.png"):
        encode_picture(PIXELS, ".jpg", long)
    for suffix in (".png", ".webp"):
        assert len(encode_picture(PIXELS, suffix, long)) > 100_000


def test_a_record_whose_text_for_others_is_too_long_keeps_ours(tmp_path: Path) -> None:
    long = dataclasses.replace(RECORD, request=RECORD.request.replace(prompt="word " * 8000))
    path = save_picture(PIXELS, tmp_path / "heart.jpg", long)
    assert read_provenance(path) == long
    assert parameters_of(path.read_bytes(), path.name) is None


def test_a_picture_too_wide_for_the_format_is_one_line() -> None:
    with pytest.raises(OutputError, match="17000×1") as caught:
        encode_picture(np.zeros((1, 17_000, 3), np.uint8), ".webp")
    assert "\n" not in str(caught.value)


def test_folders_of_input_pictures_stay_private(tmp_path: Path) -> None:
    source = ImageSource(sha256="0" * 64, width=9, height=9, path=str(tmp_path / "cat.png"))
    relative = dataclasses.replace(source, path="inputs/mask.png")
    request = RECORD.request.replace(init_image=source, mask=relative)
    path = save_picture(PIXELS, tmp_path / "heart.png", dataclasses.replace(RECORD, request=request))
    assert str(tmp_path).encode() not in path.read_bytes()
    read = read_provenance(path)
    assert read is not None
    assert read.request.init_image == dataclasses.replace(source, path="cat.png")
    assert read.request.mask == relative


def test_differences_name_what_may_change_the_bytes() -> None:
    other = dataclasses.replace(RECORD, threads=8, torch="2.14.0", safety="safe")
    assert differences(RECORD, other) == {"threads": (2, 8), "torch": ("2.13.0", "2.14.0")}
    assert differences(RECORD, RECORD) == {}
    blurred = dataclasses.replace(RECORD, policy="blur", safety="flagged")
    assert differences(blurred, RECORD) == {"alteration": ("blur", "none")}
    assert differences(dataclasses.replace(RECORD, policy="off"), RECORD) == {}  # neither changes a pixel


def test_what_no_file_can_hold_is_named_and_read_back(tmp_path: Path) -> None:
    given = dataclasses.replace(RECORD, given="latents,conditioning", policy="block")
    path = save_picture(PIXELS, tmp_path / "heart.png", given)
    assert read_provenance(path) == given
    assert given.not_recorded == "latents and a conditioning"
    assert RECORD.not_recorded == ""
    assert dataclasses.replace(RECORD, request=RECORD.request.replace(noise="generator")).not_recorded == "a generator"
    with pytest.raises(InvalidRequest, match="given 'luck' in a picture's metadata is none of generator"):
        dataclasses.replace(RECORD, given="latents,luck")
