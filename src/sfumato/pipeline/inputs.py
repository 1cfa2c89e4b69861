"""What a call of `Pipeline.generate` is given: prompts and fields become requests, input pictures are opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import fitting_size, pixels_sha256
from sfumato.pictures.source import ImageSource
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pipeline.request import Request, check_effect, counted

Picture = Image.Image | NDArray[Any] | Path | str
"""An input picture: in memory, as PIL has it or as an array (H, W, 3) or (H, W) of uint8 or of numbers from 0 to 1; or
the path of a file."""


def expand(prompt: str | Request | Sequence[str | Request], count: int, fields: Mapping[str, Any]) -> list[Request]:
    """Make one request a picture: `count` of each prompt, on seeds that rise by one. Raises `InvalidRequest`."""
    if not isinstance(prompt, (str, Request, Iterable)) or isinstance(prompt, (bytes, Mapping)):
        raise InvalidRequest(f"prompt must be a text, a Request or a list of them, not {type(prompt).__name__}")
    prompts = [prompt] if isinstance(prompt, (str, Request)) else list(prompt)
    if not prompts:
        raise InvalidRequest("no prompt was given")
    unknown = sorted(set(fields) - set(Request.__dataclass_fields__))
    if unknown:
        raise InvalidRequest(f"a request has no field {unknown[0]!r}")
    requests = [
        p.replace(**fields) if isinstance(p, Request) else Request.from_dict({"prompt": p, **_plain(fields)})
        for p in prompts
    ]
    for request in requests:
        check_effect(request, fields)
    return counted(requests, count)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, ImageSource) else value for name, value in fields.items()}


def sized(request: Request) -> tuple[Request, str]:
    """The request with the size of the picture it starts from, where it says none, and what to tell of that: "" unless
    the picture has to be made smaller. Raises `InvalidRequest`."""
    source = request.init_image
    if source is None:
        return request, ""
    width, height = fitting_size((source.width, source.height))
    found = request.replace(width=request.width or width, height=request.height or height)
    if (request.width or source.width, request.height or source.height) == (found.width, found.height):
        return found, ""
    return found, (
        f"the init image has {source.width}×{source.height} pixels, what is made of it {found.width}×{found.height}: "
        "sides are multiples of 8; give a width and height for others"
    )


def opened(picture: Picture) -> tuple[Image.Image, ImageSource]:
    """Open an input picture, and name it: by its pixels one in memory, by its bytes a file. Raises `InvalidRequest`."""
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if isinstance(picture, Image.Image):
        rgb = picture.convert("RGB")
        return rgb, ImageSource(sha256=pixels_sha256(np.array(rgb)), width=rgb.width, height=rgb.height)
    if not isinstance(picture, (Path, str)):
        raise InvalidRequest(
            "an input picture must be one of PIL's, an array (H, W, 3) or the path of a file, "
            f"not {type(picture).__name__}"
        )
    return open_picture(Path(picture))


def _from_array(array: NDArray[Any]) -> Image.Image:
    """An array (H, W, 3) or (H, W) as a picture: uint8, or numbers from 0 to 1. Raises `InvalidRequest`."""
    unit = array.dtype.kind in "bf" and bool(np.all((array >= 0) & (array <= 1)))  # false for NaN
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not fits or not array.size or not (unit or array.dtype == np.uint8):
        raise InvalidRequest(
            "an input picture as an array must be (H, W, 3) of uint8, or of numbers from 0 to 1, "
            f"not {array.shape} of {array.dtype}"
        )
    return Image.fromarray(np.round(array * 255.0).astype(np.uint8) if unit else array)


def sources_of(requests: Iterable[Request]) -> set[ImageSource]:
    """The input pictures that requests name."""
    return {source for r in requests for source in (r.init_image, r.mask) if source is not None}


def files_named(requests: Iterable[Request]) -> dict[str, Path]:
    """The files that requests name their input pictures by, as `Pipeline.generate` takes `inputs`.

    For requests that the user of this machine wrote: those from elsewhere could name any file here.
    """
    return {source.sha256: Path(source.path) for source in sources_of(requests) if source.path is not None}


def pictures_named(sources: Iterable[ImageSource], inputs: Mapping[str, Picture]) -> dict[ImageSource, Image.Image]:
    """The input pictures that requests name, out of `inputs` by SHA-256. Raises `InvalidRequest` for one that isn't
    there, or isn't any more what it was."""
    pictures = {}
    for source in sources:
        name = source.path or f"{source.sha256[:12]}…"
        if source.sha256 not in inputs:
            raise InvalidRequest(
                f"the request's input picture {name} was not given: pass it as init_image or mask, or as "
                f"inputs={{request.init_image.sha256: …}}"
            )
        pictures[source], found = opened(inputs[source.sha256])
        if found.sha256 != source.sha256 and found.path is not None:
            raise InvalidRequest(f"{found.path} has changed since the request was made: its SHA-256 is another")
        if found.sha256 != source.sha256 and source.path is None:  # a file's SHA-256 isn't that of its pixels
            raise InvalidRequest(
                f"the picture given for {name} is another: its pixels' SHA-256 is {found.sha256[:12]}…"
            )
        if (found.width, found.height) != (source.width, source.height):
            raise InvalidRequest(
                f"{name} has {found.width}×{found.height} pixels, where the request says "
                f"{source.width}×{source.height}: correct the request"
            )
    return pictures


def check_latents(latents: object, channels: int) -> None:
    """Raise `InvalidRequest` for what are no latents (B, C, h, w) of so many channels."""
    fits = isinstance(latents, Tensor) and latents.ndim == 4 and latents.shape[1] == channels and latents.numel() > 0
    if not fits or not isinstance(latents, Tensor) or not latents.is_floating_point():
        shape = f" of shape {tuple(latents.shape)}" if isinstance(latents, Tensor) else ""
        raise InvalidRequest(f"latents must be a tensor (B, {channels}, h, w), not a {type(latents).__name__}{shape}")
