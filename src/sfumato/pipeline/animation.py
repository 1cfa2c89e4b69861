"""Frames to moving pictures: GIF and WebP by Pillow, MP4 by the extra `video`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from sfumato.errors import InvalidRequest, OutputError
from sfumato.files import atomic_write
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.metadata import SOURCE_TYPE, xmp_packet
from sfumato.pipeline.parameters_text import format_parameters
from sfumato.pipeline.provenance import Provenance
from sfumato.runtime import require


def save_animation(
    frames: Sequence[Pixels],
    path: Path,
    *,
    fps: float = 12.0,
    provenance: Provenance | None = None,
    overwrite: bool = False,
) -> Path:
    """Write frames, all (H, W, 3) of one size, as .gif, .webp or .mp4, and give the path back.

    `provenance` is the first frame's. A GIF's delays are whole hundredths of a second, so its speed is rounded. Raises
    `InvalidRequest` on the format, no frames or mixed sizes, `MissingExtra` for .mp4 without PyAV, else `OutputError`.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise InvalidRequest(f"animations can't be written as {path.suffix!r}: use {', '.join(_WRITERS)}")
    if not frames or len({frame.shape for frame in frames}) > 1:
        raise InvalidRequest(f"an animation needs at least one frame, all of one size: got {len(frames)}")
    if not 0.1 <= fps <= 100:
        raise InvalidRequest(f"fps {fps:g} must be from 0.1 to 100")
    buffer = io.BytesIO()
    try:
        write(frames, buffer, fps, provenance)
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"{path}: the frames can't be written ({error}): try .webp, or smaller frames") from error
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(buffer.getbuffer())
    return path


def _gif(frames: Sequence[Pixels], file: BinaryIO, fps: float, provenance: Provenance | None) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    delay = max(round(100 / fps), 2) * 10  # ms; browsers slow anything quicker than 20 ms down to 100
    first.save(
        file, "GIF", save_all=True, append_images=rest, duration=delay, loop=0, comment=_comment(provenance).encode()
    )


def _webp(frames: Sequence[Pixels], file: BinaryIO, fps: float, provenance: Provenance | None) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    marks = {"xmp": xmp_packet(provenance)} if provenance else {}
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=90, **marks)


def _mp4(frames: Sequence[Pixels], file: BinaryIO, fps: float, provenance: Provenance | None) -> None:
    av = require("av", extra="video")
    height, width = (side + side % 2 for side in frames[0].shape[:2])  # H.264's chroma has half the size
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = _comment(provenance)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            padding = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            whole = np.pad(frame, padding, mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        container.mux(stream.encode())


def _comment(provenance: Provenance | None) -> str:
    """What formats without XMP say: made by an algorithm, and how."""
    settings = f"\n{format_parameters(provenance)}" if provenance else ""
    return f"DigitalSourceType: {SOURCE_TYPE}{settings}"


_Writer = Callable[[Sequence[Pixels], BinaryIO, float, Provenance | None], None]
_WRITERS: Mapping[str, _Writer] = {".gif": _gif, ".webp": _webp, ".mp4": _mp4}
