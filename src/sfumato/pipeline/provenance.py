"""`Provenance`: how a picture was made, complete enough to make it again and to say why that gave another one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Self

from sfumato.errors import InvalidRequest
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.request import Request

# What has to agree, beside request and model, for the same bytes to come out.
_CONDITIONS = (
    "model_sha256",
    "engine",
    "vae_tiling",
    "device",
    "dtype",
    "threads",
    "processor",
    "torch",
    "sfumato",
    "alteration",
)
# What a caller can pass in Python in the place of seed and prompt, and how a refusal calls it. No file can hold these.
_GIVEN: Mapping[str, str] = {"generator": "a generator", "latents": "latents", "conditioning": "a conditioning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How one picture was made. There is no time of making in it: the same picture gives the same file.

    `width`, `height` and `pixels_sha256` (`images.pixels_sha256`) are of the finished picture, watermark included;
    `model_sha256` is of the weights; `vae_tiling` is how large pictures pass the autoencoder; `processor` is the kind
    of CPU or GPU; `torch` and `sfumato` are versions; `safety` is the verdict, `unchecked` where nobody looked;
    `policy` is what was to happen to a flagged picture; `watermark` is the text hidden in the picture or why there is
    none; `truncated` is the part of the prompt the model didn't see; `given` names what the caller passed in the place
    of seed and prompt, with commas between. Wrong values raise `InvalidRequest`.
    """

    request: Request
    width: int
    height: int
    pixels_sha256: str
    model_name: str
    model_sha256: str
    engine: str
    device: str
    dtype: str
    threads: int
    processor: str
    torch: str
    sfumato: str
    safety: str = "unchecked"
    watermark: str = "off"
    truncated: str = ""
    policy: str = "flag"
    given: str = ""
    vae_tiling: str = "none"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name))
        if unknown := [name for name in _names(self.given) if name not in _GIVEN]:
            raise InvalidRequest(f"given {unknown[0]!r} in a picture's metadata is none of {', '.join(_GIVEN)}")

    @property
    def alteration(self) -> str:
        """What the safety policy did to the picture: "blur", "block", or "none"."""
        return self.policy if self.safety == "flagged" and self.policy in ("blur", "block") else "none"

    @property
    def not_recorded(self) -> str:
        """What went into the picture that no file holds, as words; "" where the record is complete."""
        names = {*_names(self.given), *(["generator"] if self.request.noise == "generator" else [])}
        return " and ".join(words for name, words in _GIVEN.items() if name in names)

    def to_json(self) -> str:
        """One line of JSON for embedding in files: folders of input files are left out, they are the user's own."""
        shared = dataclasses.replace(self, request=_without_folders(self.request))
        return json.dumps(_fields(shared) | {"request": shared.request.to_dict()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a record of `to_json`'s text. It may be anyone's: raises `InvalidRequest` for anything missing, unknown
        or mistyped."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the picture's metadata is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise InvalidRequest(f"the picture's metadata is a {type(values).__name__}, not an object of fields")
        known = {field.name for field in dataclasses.fields(cls)}
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if wrong := sorted((set(values) - known) | (required - set(values))):
            raise InvalidRequest(f"the picture's metadata is of another version of sfumato: see its field {wrong[0]!r}")
        return cls(**(values | {"request": Request.from_dict(values["request"])}))


def differences(recorded: Provenance, current: Provenance) -> dict[str, tuple[Any, Any]]:
    """Conditions that differ between two runs of one request, as name → (recorded, current); empty: same bytes due."""
    return {
        name: (getattr(recorded, name), getattr(current, name))
        for name in _CONDITIONS
        if getattr(recorded, name) != getattr(current, name)
    }


def _names(given: str) -> list[str]:
    return given.split(",") if given else []


def _check(name: str, value: object) -> None:
    expected: type = _TYPES.get(name, str)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise InvalidRequest(f"{name} in a picture's metadata must be {expected.__name__}, not {type(value).__name__}")
    if isinstance(value, int) and not 0 < value < 2**31:
        raise InvalidRequest(f"{name} {value} in a picture's metadata must be from 1 to {2**31 - 1}")


_TYPES: Mapping[str, type] = {"request": Request, "width": int, "height": int, "threads": int}


def _fields(provenance: Provenance) -> dict[str, Any]:
    return {field.name: getattr(provenance, field.name) for field in dataclasses.fields(provenance)}


def _without_folders(request: Request) -> Request:
    """The request with absolute paths of input files cut to the name: they would tell who made the picture."""
    return request.replace(
        init_image=_named_only(request.init_image),
        mask=_named_only(request.mask),
        vae=PurePath(request.vae).name if request.vae else None,
    )


def _named_only(source: ImageSource | None) -> ImageSource | None:
    if source is None or source.path is None or not PurePath(source.path).is_absolute():
        return source
    return dataclasses.replace(source, path=PurePath(source.path).name)
