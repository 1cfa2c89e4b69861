"""Named ways to evaluate: what the pictures are made with, pinned in data files beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.toml_files import read_config

_FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Every choice that the numbers depend on, apart from model, prompts, reference pictures and networks. Wrong values
    raise `InvalidConfig`."""

    name: Annotated[str, "what reports call it"]
    title: Annotated[str, "what it measures, in a line"] = ""
    prompts: Annotated[int, "how many are taken of the list, at most"] = 10_000
    prompt_seed: Annotated[int, "which are drawn from a larger collection"] = 0
    seed: Annotated[int, "of the first prompt; prompt i is painted from seed + i"] = 0
    guidance_scales: Annotated[tuple[float, ...], "one curve's points"] = (7.5,)
    samplers: Annotated[tuple[str, ...], "their names"] = ("plms",)
    steps: Annotated[tuple[int, ...], "steps of the sampler"] = (50,)
    side: Annotated[int | None, "width and height in pixels; left out: the model's own"] = None
    profile: Annotated[str, "whose conventions"] = "diffusers"
    reference_side: Annotated[int | None, "reference pictures are cut square and resized to it"] = None
    notes: Annotated[tuple[str, ...], "what a reader of the numbers has to know"] = ()

    def __post_init__(self) -> None:
        if not (self.guidance_scales and self.samplers and self.steps):
            raise InvalidConfig("a protocol needs a guidance scale, a sampler and a number of steps")
        if self.prompts < 1:
            raise InvalidConfig(f"prompts = {self.prompts} must be 1 or more")


def protocol_names() -> tuple[str, ...]:
    """The protocols that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def read_protocol(name: str) -> Protocol:
    """Read a protocol that comes with the package, or the one in a TOML file. Raises `InvalidRequest` for a name that
    is neither, `InvalidConfig` for a wrong file."""
    if name in protocol_names():
        return read_config(Protocol, _FOLDER / f"{name}.toml")
    if not name.endswith(".toml"):
        raise InvalidRequest(f"protocol {name!r} is unknown: use {', '.join(protocol_names())}, or a .toml file's path")
    return read_config(Protocol, Path(name))
