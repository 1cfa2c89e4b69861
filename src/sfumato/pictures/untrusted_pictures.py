"""Picture files that come from outside, opened with limits on everything; they may be broken or made to do harm."""

from __future__ import annotations

import hashlib
import io
import logging
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sfumato.errors import InvalidRequest
from sfumato.pictures.source import ImageSource

# Pillow logs what is wrong with a file besides raising it; with no handler Python would print that on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 8192 * 8192

# Only formats that hold pixels: Pillow would also start Ghostscript for EPS.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")


def open_picture(path: Path) -> tuple[Image.Image, ImageSource]:
    """A picture file as 8-bit RGB, upright, with what names it in a request. `InvalidRequest` says what is wrong."""
    data = read_bounded(path)
    picture = decode_picture(data, str(path))
    digest = hashlib.sha256(data).hexdigest()
    return picture, ImageSource(sha256=digest, width=picture.width, height=picture.height, path=str(path))


def decode_picture(data: bytes, name: str) -> Image.Image:
    """A picture file's bytes → 8-bit RGB. `name` is what errors call it.

    Turned as its EXIF orientation says; the first frame of an animation; transparency over white; 16 bits scaled to 8.
    The size is checked before anything is decoded.
    """
    with reading(data, name) as picture:
        upright = ImageOps.exif_transpose(picture)
        return _flattened(_eight_bits(upright))


@contextmanager
def reading(data: bytes, name: str) -> Iterator[Image.Image]:
    """The opened but not decoded picture. Whatever goes wrong with it inside the block is an `InvalidRequest`."""
    try:
        # Pillow warns of large and of slightly damaged files; here the former are an error, the latter good enough.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InvalidRequest(
                    f"{name}: {picture.width}×{picture.height} is above the limit of {MAX_PIXELS:,} pixels: "
                    "give a smaller picture"
                )
            yield picture
    except InvalidRequest:
        raise
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{name} is not a picture in a known format: give PNG, JPEG, WebP, AVIF or GIF") from error
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{name} is above the limit of {MAX_PIXELS:,} pixels: give a smaller picture") from error
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every built-in exception
        raise InvalidRequest(f"{name} is a damaged picture ({_one_line(error)}): save or download it again") from error


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a picture file's bytes, turned as `decode_picture` turns it, without decoding it."""
    with reading(data, name) as picture:
        width, height = picture.size
    with reading(without_pixels(data), name) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def without_pixels(data: bytes) -> bytes:
    """Give a PNG one pixel in the place of its own, and leave all that it says; other formats are given as they are.

    To read what a PNG says after its pixels, Pillow decodes them.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    said, start = [], 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            said.append(data[start:end])
        start = end
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    pixel = file.getvalue()
    return pixel[:33] + b"".join(said) + pixel[33:]  # after the signature and the header


def read_bounded(path: Path) -> bytes:
    """A regular file's bytes, at most `MAX_BYTES` of them. `InvalidRequest` where it can't be had."""
    data = None
    try:
        if stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InvalidRequest(f"{path} doesn't exist: give the path of a picture") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read ({_one_line(error)}): give the path of a picture") from error
    if data is None:
        raise InvalidRequest(f"{path} is not a file: give the path of a picture")
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"{path} is above the limit of {MAX_BYTES >> 20} MB for a picture: give a smaller one")
    return data


def locate(source: ImageSource, beside: Path) -> Path:
    """Where the input picture named in a picture's metadata is; its content must be the same.

    Looked for under its relative path and under its name in the folder `beside`. An absolute path isn't followed: the
    metadata may come from anyone, and on Windows such a path can make the machine log on to theirs. Raises
    `InvalidRequest` where it isn't there or has changed.
    """
    if source.path is None:
        raise InvalidRequest(f"the input picture {source.sha256[:10]} was given without a file: give it again")
    named = Path(source.path)
    for path in (beside / named.name, *[named] * (not named.anchor)):
        if path.is_file() and hashlib.sha256(read_bounded(path)).hexdigest() == source.sha256:
            return path
    raise InvalidRequest(
        f"the input picture {source.path} ({source.sha256[:10]}) is not there or has changed: put it back, or give it"
    )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Deeper gray pictures scaled to 8 bits; Pillow's own conversion would clip them to white."""
    if not picture.mode.startswith("I"):
        return picture
    gray = np.asarray(picture).astype(np.float64).clip(0, 65535)
    return Image.fromarray(np.round(gray / 257).astype(np.uint8))


def _flattened(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
