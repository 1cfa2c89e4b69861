"""Pictures to files: PNG, JPEG, WebP, AVIF, each with its provenance; whole or not at all."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, features

from sfumato.errors import InvalidRequest, OutputError
from sfumato.files import write_bytes
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.metadata import exif_block, png_text, xmp_packet
from sfumato.pipeline.provenance import Provenance

_JPEG_SEGMENT = 65_533  # bytes of content and size field, JPEG's own limit
_JPEG_XMP = _JPEG_SEGMENT - len(b"http://ns.adobe.com/xap/1.0/\0")
_JPEG_EXIF = _JPEG_SEGMENT - len(b"Exif\0\0")
_SLUG = 40
_NUMBERED = re.compile(r"(\d{5,})-")


def encode_picture(pixels: Pixels, suffix: str, provenance: Provenance | None = None) -> bytes:
    """The bytes of a picture file. `suffix` (".png", ".jpg", ".webp", ".avif" …) decides the format.

    The same picture and provenance give the same bytes. `InvalidRequest` on a suffix we don't write, `OutputError`
    where a format can't hold the picture or its record.
    """
    encode = _ENCODERS[picture_suffix(suffix)]
    buffer = io.BytesIO()
    try:
        encode(Image.fromarray(pixels), buffer, provenance)
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        size = f"{pixels.shape[1]}×{pixels.shape[0]}"
        raise OutputError(f"a {size} picture can't be written as {suffix} ({error}): save it as .png") from error
    return buffer.getvalue()


def save_picture(pixels: Pixels, path: Path, provenance: Provenance | None = None, *, overwrite: bool = False) -> Path:
    """Write a picture (H, W, 3) to `path` in the format of its suffix, and give the path back."""
    write_bytes(path, encode_picture(pixels, path.suffix, provenance), overwrite=overwrite)
    return path


def save_numbered(pixels: Pixels, folder: Path, suffix: str, provenance: Provenance) -> Path:
    """Write a picture into a folder under the next free number, seed and prompt: `00001-42-a-red-heart.png`."""
    data = encode_picture(pixels, suffix, provenance)
    return write_numbered(data, folder, provenance.request.seed, provenance.request.prompt, suffix)


def write_numbered(data: bytes, folder: Path, seed: int, words: str, suffix: str) -> Path:
    """Write a file into a folder under the next free number, whoever takes numbers meanwhile; `words` are part of its
    name. Raises `OutputError`."""
    while True:
        path = next_path(folder, seed, words, suffix)
        try:
            write_bytes(path, data)
        except OutputError:
            if not os.path.lexists(path):
                raise
            continue  # another process took the number first
        return path


def next_path(folder: Path, seed: int, prompt: str, suffix: str) -> Path:
    """The name that `write_numbered` uses next. One above the highest number there, so that names sort by age. Raises
    `OutputError` for a folder that can't be listed."""
    try:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise OutputError(f"{folder} can't be listed ({error.strerror}): choose another folder") from error
    taken = [int(match[1]) for name in names if (match := _NUMBERED.match(name))]
    parts = (f"{max(taken, default=0) + 1:05d}", str(seed), slug(prompt))
    return folder / ("-".join(part for part in parts if part) + suffix)


def slug(prompt: str) -> str:
    """The prompt as a harmless part of a file name: ASCII letters and digits, hyphens between, at most 40."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.findall("[a-z0-9]+", ascii_text)
    whole = "-".join(words)
    if len(whole) <= _SLUG:
        return whole
    return whole[: _SLUG + 1].rpartition("-")[0] or whole[:_SLUG]


def picture_suffix(suffix: str) -> str:
    """Give `suffix` in lower case, if we write that format here, else raise `InvalidRequest`."""
    lower = suffix.lower()
    if lower not in _ENCODERS:
        raise InvalidRequest(f"pictures can't be written as {suffix!r}: use {', '.join(_ENCODERS)}")
    if lower == ".avif" and not features.check("avif"):
        raise InvalidRequest(
            "pictures can't be written as '.avif' by the Pillow installed here: use .png, or update it"
        )
    return lower


def _png(picture: Image.Image, file: io.BytesIO, provenance: Provenance | None) -> None:
    picture.save(file, "PNG", pnginfo=png_text(provenance) if provenance else None)


def _jpeg(picture: Image.Image, file: io.BytesIO, provenance: Provenance | None) -> None:
    marks = _marks(provenance)
    if len(marks.get("xmp", b"")) > _JPEG_XMP:
        raise OutputError("the prompt is too long for a JPEG's metadata: save the picture as .png or .webp")
    if len(marks.get("exif", b"")) > _JPEG_EXIF:
        del marks["exif"]  # it repeats, for other programs, what the XMP packet says
    picture.save(file, "JPEG", quality=95, subsampling=0, **marks)


def _webp(picture: Image.Image, file: io.BytesIO, provenance: Provenance | None) -> None:
    picture.save(file, "WEBP", quality=95, **_marks(provenance))


def _avif(picture: Image.Image, file: io.BytesIO, provenance: Provenance | None) -> None:
    # One thread: the encoder's bytes depend on their number.
    picture.save(file, "AVIF", quality=90, max_threads=1, **_marks(provenance))


def _marks(provenance: Provenance | None) -> dict[str, bytes]:
    return {"xmp": xmp_packet(provenance), "exif": exif_block(provenance)} if provenance else {}


_Encoder = Callable[[Image.Image, io.BytesIO, Provenance | None], None]
_ENCODERS: Mapping[str, _Encoder] = {
    ".png": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".webp": _webp,
    ".avif": _avif,
}
