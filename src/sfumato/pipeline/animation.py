"""Frames to moving pictures: GIF and WebP by Pillow, MP4 by the extra `video`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from sfumato.errors import InvalidRequest, OutputError
from sfumato.files import atomic_write
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.metadata import plain_comment, xmp_packet
from sfumato.pipeline.provenance import Provenance
from sfumato.runtime import require

MAX_PIXELS = 2**28  # of all frames together; Pillow holds each in 4 bytes
_HELD = frozenset({".gif", ".webp"})


def check_size(suffix: str, frames: int, width: int, height: int) -> None:
    """Raise `InvalidRequest` where so many frames can't be held at once, as Pillow does for the formats it writes."""
    if suffix.lower() in _HELD and frames * width * height > MAX_PIXELS:
        most = MAX_PIXELS // (width * height)
        raise InvalidRequest(
            f"{frames} frames of {width}×{height} don't fit a {suffix}: at most {most} do, or write .mp4"
        )


def save_animation(
    frames: Iterable[Pixels],
    path: Path,
    *,
    fps: float = 12.0,
    provenance: Provenance | None = None,
    overwrite: bool = False,
) -> Path:
    """Write frames, all (H, W, 3) of one size, as .gif, .webp or .mp4, and give the path back.

    Frames are taken as they come, so they can be made meanwhile; what their making raises is raised here.
    `provenance` is the first frame's. A GIF's delays are whole hundredths of a second, so its speed is rounded. Raises
    `InvalidRequest` on the format, no frames or mixed sizes, `MissingExtra` for .mp4 without PyAV, else `OutputError`.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise InvalidRequest(f"animations can't be written as {path.suffix!r}: use {', '.join(_WRITERS)}")
    if not 0.1 <= fps <= 100:
        raise InvalidRequest(f"fps {fps:g} must be from 0.1 to 100")
    buffer = io.BytesIO()
    source = _Source(frames)
    try:
        write(source.first, source.rest(), buffer, fps, provenance)
    except (OSError, ValueError, RuntimeError) as error:
        if error is source.failure:
            raise
        raise OutputError(f"{path}: the frames can't be written ({error}): try .webp, or smaller frames") from error
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(buffer.getbuffer())
    return path


class _Source:
    """The caller's frames, checked as they come. `failure` is what their making raised, not an encoder."""

    def __init__(self, frames: Iterable[Pixels]) -> None:
        self._frames = iter(frames)
        self.failure: BaseException | None = None
        try:
            self.first = next(self._frames)
        except StopIteration:
            raise InvalidRequest("an animation needs at least one frame: got none") from None

    def rest(self) -> Iterator[Pixels]:
        try:
            for frame in self._frames:
                if frame.shape != self.first.shape:
                    sizes = " and ".join("{1}×{0}".format(*shape) for shape in (self.first.shape, frame.shape))
                    raise InvalidRequest(f"an animation's frames must be of one size: got {sizes}")
                yield frame
        except BaseException as error:
            self.failure = error
            raise


def _gif(first: Pixels, rest: Iterator[Pixels], file: BinaryIO, fps: float, provenance: Provenance | None) -> None:
    Image.fromarray(first).save(
        file,
        "GIF",
        save_all=True,
        append_images=map(Image.fromarray, rest),
        duration=max(round(100 / fps), 2) * 10,  # ms; browsers slow anything quicker than 20 ms down to 100
        loop=0,
        comment=plain_comment(provenance).encode(),
    )


def _webp(first: Pixels, rest: Iterator[Pixels], file: BinaryIO, fps: float, provenance: Provenance | None) -> None:
    Image.fromarray(first).save(
        file,
        "WEBP",
        save_all=True,
        append_images=map(Image.fromarray, rest),
        duration=round(1000 / fps),
        loop=0,
        quality=90,
        **({"xmp": xmp_packet(provenance)} if provenance else {}),
    )


def _mp4(first: Pixels, rest: Iterator[Pixels], file: BinaryIO, fps: float, provenance: Provenance | None) -> None:
    av = require("av", extra="video")
    height, width = (side + side % 2 for side in first.shape[:2])  # H.264's chroma has half the size
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = plain_comment(provenance)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in chain([first], rest):
            padding = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            whole = np.pad(frame, padding, mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        container.mux(stream.encode())


_Writer = Callable[[Pixels, Iterator[Pixels], BinaryIO, float, Provenance | None], None]
_WRITERS: Mapping[str, _Writer] = {".gif": _gif, ".webp": _webp, ".mp4": _mp4}
