"""Making a picture again from its own record, and saying whether it is the same; if not, what was different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import Pixels, pixels_sha256, psnr
from sfumato.pictures.source import ImageSource
from sfumato.pictures.untrusted_pictures import locate, open_picture
from sfumato.pipeline.metadata import read_provenance
from sfumato.pipeline.provenance import Provenance, differences
from sfumato.pipeline.request import Request, upscaled
from sfumato.progress import Cancellation, OnProgress, ignore

if TYPE_CHECKING:
    from sfumato.pipeline.pipeline import Pipeline

# What each of these is compressed with changes pixels; the record's hash is of those that went in.
_LOSSY = frozenset({".jpg", ".jpeg", ".webp", ".avif"})
# Below this, in dB, no such compression but another hand was at work: ours stay above 28 on the hardest pictures.
_LEAST_LIKENESS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came out of making a picture again.

    `identical`: every pixel is what it was. `untouched`: the file still holds what was written then (None for formats
    that lose pixels, where small changes can't be told). `psnr` compares the new picture with the file's pixels, in
    dB. `differences` are the conditions that weren't the same: name → (then, now).
    """

    identical: bool
    untouched: bool | None
    psnr: float
    differences: Mapping[str, tuple[Any, Any]]
    recorded: Provenance
    current: Provenance
    pixels: Pixels = field(repr=False)


def recorded_in(path: Path) -> Provenance:
    """The record in a picture; `InvalidRequest` where there is none that says how to make it again."""
    record = read_provenance(path)
    if record is None:
        raise InvalidRequest(f"{path} has no record of sfumato: only a picture that sfumato made can be made again")
    if record.not_recorded:
        raise InvalidRequest(f"{path} was made with {record.not_recorded} of the caller's own, which no file can hold")
    return record


def with_inputs(request: Request, beside: Path, *, init_image: Path | None = None, mask: Path | None = None) -> Request:
    """The request with its input pictures found: where given, else where `locate` looks, in the folder `beside` first.

    Each must be the very file the record names by its SHA-256; `InvalidRequest` says which isn't.
    """
    found = {
        name: _found(name, getattr(request, name), given, beside)
        for name, given in (("init_image", init_image), ("mask", mask))
    }
    # 0.1 took a variation without its seed, and varied nothing.
    seed = request.seed if request.variation_seed is None and request.variation_strength else request.variation_seed
    return request.replace(**found, variation_seed=seed)


def replay(
    path: Path,
    pipeline: Pipeline,
    request: Request,
    *,
    inputs: Mapping[str, Path] | None = None,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> Replay:
    """Make the picture in `path` again, by `request` (of its record) with the `inputs` it names, and compare.

    Another model, machine or version is no error: the result says so in `differences`. A file whose size isn't its
    record's is: `InvalidRequest`, before any work.
    """
    recorded = recorded_in(path)
    stored = np.asarray(open_picture(path)[0])
    _check_size(path, stored, recorded, pipeline.resolve(request))
    made = pipeline.generate(request, inputs=inputs, on_progress=on_progress, cancellation=cancellation)
    pixels, current = np.asarray(made.images[0]), made.provenance[0]
    likeness = psnr(pixels, stored)
    untouched: bool | None = pixels_sha256(stored) == recorded.pixels_sha256
    same_again = current.pixels_sha256 == recorded.pixels_sha256
    if path.suffix.lower() in _LOSSY:
        untouched = False if same_again and likeness < _LEAST_LIKENESS else None
    return Replay(
        identical=same_again and untouched is not False,
        untouched=untouched,
        psnr=likeness,
        differences=differences(recorded, current),
        recorded=recorded,
        current=current,
        pixels=pixels,
    )


def _check_size(path: Path, stored: Pixels, recorded: Provenance, request: Request) -> None:
    """Raise `InvalidRequest` where file and record differ in size: a sheet or an animation holds its first picture's
    record, and a record may be anybody's, and ask for days."""
    assert request.width and request.height
    found = (stored.shape[1], stored.shape[0])
    asked = (upscaled(request.width, request.upscale), upscaled(request.height, request.upscale))
    for what, size in (("its record says", (recorded.width, recorded.height)), ("its record asks for", asked)):
        if size != found:
            raise InvalidRequest(
                f"{path} has {found[0]}×{found[1]} pixels, {what} {size[0]}×{size[1]}: a sheet, or a changed record; "
                "only a single picture as it was made can be made again"
            )


def _found(name: str, source: ImageSource | None, given: Path | None, beside: Path) -> ImageSource | None:
    flag = "--" + name.replace("_", "-")
    if source is None:
        if given is not None:
            raise InvalidRequest(f"{flag} {given}: the picture was made without one, leave it out")
        return None
    if given is not None:
        picture = open_picture(given)[1]
        if picture.sha256 != source.sha256:
            raise InvalidRequest(
                f"{flag} {given} is another file than the one used ({source.sha256[:10]}…): give that one"
            )
        return picture
    try:
        return open_picture(locate(source, beside))[1]
    except InvalidRequest as error:
        raise InvalidRequest(f"{error}, as {flag}") from error
