"""What a call of `Pipeline.generate` is given: prompts and fields become requests, input pictures are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import fitting_size, pixels_sha256
from sfumato.pictures.source import ImageSource
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pipeline.request import Request, counted

Picture = Image.Image | Path | str


def expand(prompt: str | Request | Sequence[str | Request], count: int, fields: Mapping[str, Any]) -> list[Request]:
    """Make one request a picture: `count` of each prompt, on seeds that rise by one. Raises `InvalidRequest`."""
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
    return counted(requests, count)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, ImageSource) else value for name, value in fields.items()}


def sized(request: Request) -> Request:
    """The request with the size of the picture it starts from, where it says none. Raises `InvalidRequest`."""
    if request.init_image is None:
        return request
    width, height = fitting_size((request.init_image.width, request.init_image.height))
    return request.replace(width=request.width or width, height=request.height or height)


def opened(picture: Picture) -> tuple[Image.Image, ImageSource]:
    """Open an input picture, and name it: by its pixels one in memory, by its bytes a file. Raises `InvalidRequest`."""
    if isinstance(picture, Image.Image):
        rgb = picture.convert("RGB")
        return rgb, ImageSource(sha256=pixels_sha256(np.array(rgb)), width=rgb.width, height=rgb.height)
    return open_picture(Path(picture))


def referenced(source: ImageSource) -> Image.Image:
    """The input picture a request names, if it still is what it was, else `InvalidRequest`."""
    if source.path is None:
        raise InvalidRequest(f"the request's input picture ({source.sha256[:12]}…) has no path: pass it as init_image")
    picture, found = open_picture(Path(source.path))
    if found.sha256 != source.sha256:
        raise InvalidRequest(f"{source.path} has changed since the request was made: its SHA-256 is another")
    if (found.width, found.height) != (source.width, source.height):
        raise InvalidRequest(
            f"{source.path} has {found.width}×{found.height} pixels, where the request says "
            f"{source.width}×{source.height}: correct the request"
        )
    return picture
