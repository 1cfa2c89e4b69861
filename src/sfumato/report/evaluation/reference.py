"""The real pictures that generated ones are compared with: a folder of them, or the moments that others published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import Pixels
from sfumato.pictures.untrusted_pictures import open_picture, read_bounded
from sfumato.report.evaluation.feature_cache import pictures_sha256
from sfumato.report.metrics.fid import Gaussian

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Pictures, and the Gaussians of spaces that are known without pictures. `described` says where they are from."""

    pictures: tuple[Pixels, ...] = ()
    moments: Mapping[str, Gaussian] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)


def read_folder(folder: Path, *, side: int | None = None) -> list[Pixels]:
    """Every picture in a folder and its subfolders, in the order of their paths; with `side`, their middle cut square
    and resized by Lanczos. `InvalidRequest` where there are none or one can't be read."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InvalidRequest(f"{folder} holds no pictures: give the folder they are in")
    return [np.asarray(_fitted(open_picture(path)[0], side)) for path in paths]


def read_reference(folder: Path | None, statistics: Mapping[str, Path], *, side: int | None = None) -> Reference:
    """The reference of a run. `statistics` are `.npz` files with `mu` and `sigma`, as pytorch-fid writes them, by the
    space they are of (`inception/pytorch-fid`). `InvalidRequest` where one isn't such a file."""
    pictures = tuple(read_folder(folder, side=side)) if folder is not None else ()
    described: dict[str, Any] = {}
    if folder is not None:
        described = {
            "folder": folder.name,
            "pictures": len(pictures),
            "side": side,
            "sha256": pictures_sha256(pictures),
        }
    moments = {space: read_moments(path) for space, path in statistics.items()}
    return Reference(
        pictures=pictures,
        moments=moments,
        described=described | {f"statistics of {space}": path.name for space, path in statistics.items()},
    )


def read_moments(path: Path) -> Gaussian:
    """Mean and covariance from an `.npz` file. Nothing in it is run. Raises `InvalidRequest` for other files."""
    read_bounded(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean, covariance = stored["mu"], stored["sigma"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{path} holds no statistics (mu and sigma in an .npz file): {error}") from error
    try:
        return Gaussian.from_moments(mean, covariance)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from error


def _fitted(picture: Image.Image, side: int | None) -> Image.Image:
    if side is None or picture.size == (side, side):
        return picture
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
