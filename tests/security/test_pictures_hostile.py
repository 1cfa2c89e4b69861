"""Input pictures that are broken, huge, odd or not pictures: opened right, or refused in one line and cheaply."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sfumato.errors import InvalidRequest
from sfumato.pictures import untrusted_pictures as opening
from sfumato.pictures.pixels import picture_to_tensor
from sfumato.pictures.source import ImageSource
from sfumato.pictures.untrusted_pictures import decode_picture, locate, open_picture

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *["AVIF"] * features.check("avif")]


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, data: bytes, *chunks: bytes) -> bytes:
    """A PNG from its parts, whatever they claim."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(data, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + png_chunk(b"IEND", b"")


def pixel(picture: Image.Image) -> tuple[int, ...]:
    value = picture.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def refused(data: bytes) -> str:
    """The one line with which the bytes are refused."""
    with pytest.raises(InvalidRequest) as caught:
        decode_picture(data, "cat.png")
    message = str(caught.value)
    assert message.startswith("cat.png")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_opens(kind: str) -> None:
    picture = decode_picture(encoded(Image.new("RGB", (40, 30), (200, 100, 50)), kind), "x")
    assert picture.mode == "RGB"
    assert picture.size == (40, 30)
    assert np.abs(np.array(pixel(picture)) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("claim", [(8193, 8192), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(claim: tuple[int, int], recwarn: pytest.WarningsRecorder) -> None:
    tracemalloc.start()
    message = refused(png(*claim, 8, 2, b"\0" * 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "67,108,864 pixels" in message
    assert peak < 2**20
    assert not recwarn.list


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    bomb = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * 2**26, 9))
    refused(png(1, 1, 8, 2, b"\0" * 4, bomb))


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_BYTES", 2**20)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(InvalidRequest, match="limit of 1 MB"):
        open_picture(path)


@pytest.mark.parametrize("size", [(1, 1), (65_500, 1), (1, 65_500)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_shapes_open(size: tuple[int, int], kind: str) -> None:
    picture = decode_picture(encoded(Image.new("RGB", size, (10, 200, 30)), kind), "x")
    assert picture.size == size
    assert picture_to_tensor(picture, 64, 64).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("value", [0, 255, 256, 32_768, 65_535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(value: int, kind: str) -> None:
    gray = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert pixel(decode_picture(encoded(gray, kind), "x")) == (round(value / 257),) * 3


def test_sixteen_bit_colour_opens() -> None:
    row = b"\0" + struct.pack(">3H", 65_535, 32_896, 0)
    assert pixel(decode_picture(png(1, 1, 16, 2, row), "x")) == (255, 128, 0)


def test_cmyk_becomes_rgb() -> None:
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixel(decode_picture(encoded(inks, "JPEG"), "x"))
    assert red > 250 and green < 5 and blue < 5


def test_transparency_is_laid_on_white() -> None:
    half_red = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert pixel(decode_picture(encoded(half_red), "x")) == (255, 127, 127)
    clear = Image.new("LA", (1, 1), (0, 0))
    assert pixel(decode_picture(encoded(clear), "x")) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 3)
    palette.putpalette([0, 0, 255] * 4)
    assert pixel(decode_picture(encoded(palette), "x")) == (0, 0, 255)
    assert pixel(decode_picture(encoded(palette, transparency=3), "x")) == (255, 255, 255)


def test_bits_and_grays_open() -> None:
    assert pixel(decode_picture(encoded(Image.new("1", (9, 9), 1)), "x")) == (255, 255, 255)
    assert pixel(decode_picture(encoded(Image.new("L", (9, 9), 77)), "x")) == (77, 77, 77)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = pixel(decode_picture(data, "x"))
    assert red > 250 and blue < 5


def test_photographs_are_turned_upright() -> None:
    sideways = Image.new("RGB", (40, 20), "white")
    sideways.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    upright = decode_picture(encoded(sideways, "JPEG", exif=exif, quality=95), "x")
    assert upright.size == (20, 40)
    assert max(pixel(upright)) < 10
    assert min(upright.getpixel((10, 39))) > 245


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    refused(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"P6\n9 9\n255\n"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    refused(data)


@settings(deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF"]), st.data())
def test_damaged_bytes_open_or_are_refused(kind: str, data: st.DataObject) -> None:
    gradient = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    damaged = bytearray(encoded(gradient, kind))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        picture = decode_picture(bytes(damaged), "cat.png")
    except InvalidRequest as error:
        assert "\n" not in str(error)
    else:
        assert picture.mode == "RGB"


def test_opening_says_what_names_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(Image.new("RGB", (5, 7))))
    picture, source = open_picture(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source == ImageSource(sha256=digest, width=5, height=7, path=str(path))
    assert picture.size == (5, 7)


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        ("nothing", "doesn't exist"),
        (".", "not a file"),
        ("pipe", "not a file"),
        ("\0", "can't be read"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            open_picture(tmp_path / path)


def test_an_input_picture_is_found_again_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    here.mkdir()
    beside.mkdir()
    monkeypatch.chdir(here)
    Path("cat.png").write_bytes(encoded(Image.new("RGB", (5, 7))))
    _, source = open_picture(Path("cat.png"))
    assert locate(source, beside) == Path("cat.png")
    Path("cat.png").rename(beside / "cat.png")
    assert locate(source, beside) == beside / "cat.png"
    (beside / "cat.png").write_bytes(encoded(Image.new("RGB", (5, 8))))
    with pytest.raises(InvalidRequest, match="has changed"):
        locate(source, beside)
    with pytest.raises(InvalidRequest, match="without a file"):
        locate(ImageSource(sha256=source.sha256, width=5, height=7), beside)


def test_metadata_can_not_point_anywhere_on_the_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(Image.new("RGB", (5, 7))))
    _, source = open_picture(secret)
    assert source.path == str(secret)
    with pytest.raises(InvalidRequest, match="not there"):
        locate(source, tmp_path / "elsewhere")
