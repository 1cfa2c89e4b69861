"""What a benchmark is to measure. Checked when it is made; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sfumato.errors import InvalidRequest
from sfumato.pipeline.request import MAX_SIDE, MAX_STEPS
from sfumato.runtime import DTYPES

What = Literal["step", "decode", "image"]
"""One guided step of the UNet; the decoder on one batch of latents; whole pictures from a prompt."""

WHATS: tuple[What, ...] = get_args(What)
RANDOM_V1 = "v1"
"""The model that has v1-4's shapes and random numbers."""

PROMPT = "a photograph of an astronaut riding a horse"
"""Of whole pictures."""

_LIMITS = {"steps": MAX_STEPS, "rounds": 1000, "batch": 256, "image_steps": MAX_STEPS, "threads": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a benchmark measures: `rounds` times every contender gets its turn, in which it takes `steps` guided steps
    of `batch` pictures each.

    `model` is "v1" (random weights) or any model's name or path; `size` is the pictures' side in pixels, None for the
    model's own; `threads` None leaves each program its own choice; `image_steps` are those of a whole picture.
    `fresh` starts a process for every turn: less memory, and loading is measured every round; None decides by what
    memory is free. Raises `InvalidRequest`.
    """

    model: str = RANDOM_V1
    size: int | None = None
    batch: int = 1
    steps: int = 1
    rounds: int = 3
    threads: int | None = None
    what: tuple[What, ...] = ("step",)
    image_steps: int = 50
    device: str = "cpu"
    dtype: str = "auto"
    fresh: bool | None = None

    def __post_init__(self) -> None:
        for name, most in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InvalidRequest(f"{name} {value} must be a whole number from 1 to {most}", field=name)
        if self.size is not None and (self.size % 8 or not 8 <= self.size <= MAX_SIDE):
            raise InvalidRequest(f"size {self.size} must be a multiple of 8 from 8 to {MAX_SIDE}", field="size")
        if self.dtype not in ("auto", *DTYPES):
            raise InvalidRequest(f"dtype {self.dtype!r} is unknown: use auto, {', '.join(DTYPES)}", field="dtype")
        if not self.what or set(self.what) - set(WHATS):
            raise InvalidRequest(f"what {','.join(self.what)!r} must be some of {', '.join(WHATS)}", field="what")

    def to_values(self) -> dict[str, Any]:
        """Give the plan's fields, as JSON can have them."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Plan:
        """Make a plan of what `to_values` gave."""
        return cls(**(values | {"what": tuple(values["what"])}))
