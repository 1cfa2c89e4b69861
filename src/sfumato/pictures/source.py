"""How a request names an input picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from sfumato.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """An input picture, named by its content: SHA-256 of the file, size in pixels, and where it was last seen. Wrong
    values raise `InvalidRequest`."""

    sha256: str
    width: int
    height: int
    path: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InvalidRequest(f"an input picture's sha256 {self.sha256!r} must be 64 hexadecimal digits, lower case")
        for name in ("width", "height"):
            side = getattr(self, name)
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side < 2**31:
                raise InvalidRequest(f"an input picture's {name} {side!r} must be a whole number from 1 to {2**31 - 1}")
        if self.path is not None and not isinstance(self.path, str):
            raise InvalidRequest(f"an input picture's path must be text, not {type(self.path).__name__}")

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Read plain JSON values. `InvalidRequest` on a missing, unknown or mistyped field."""
        if not isinstance(values, dict):
            raise InvalidRequest(f"an input picture is an object of fields, not {type(values).__name__}")
        fields = {"sha256", "width", "height", "path"}
        wrong = sorted(map(str, (set(values) - fields) | (fields - {"path"} - set(values))))
        if wrong:
            raise InvalidRequest(f"an input picture has fields sha256, width, height and path: see {wrong[0]!r}")
        return cls(**values)
