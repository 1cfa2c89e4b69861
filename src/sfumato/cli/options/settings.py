"""Where settings come from: flags, then `SFUMATO_…` in the environment, then `sfumato.toml`, then the user's config."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfumato.choices import check_choice
from sfumato.cli.options.flags import SAFETY_POLICIES, FlagValues, SafetyPolicy
from sfumato.cli.terminal.output_lines import write_note
from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.modelfiles.load_options import LoadOptions, check_kinds, field_kinds, option_value
from sfumato.pipeline.field_text import FIELDS, field_value
from sfumato.pipeline.presets import PRESET, gives_up, with_preset
from sfumato.pipeline.request import Request, check_effect
from sfumato.runtime import logger

FILE_NAME = "sfumato.toml"
ENVIRONMENT = "SFUMATO_"
MAX_BYTES = 2**20
MAX_THREADS = 1024

_OWN_TO_A_PICTURE = ("prompt", "init_image", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a model is loaded and its pictures are handed out: what isn't in a `Request`.

    `deterministic` runs one picture at a time, whatever `options` says. `threads` None leaves torch its own number.
    Wrong values raise `InvalidRequest`.
    """

    options: LoadOptions = field(default_factory=LoadOptions)
    deterministic: bool = False
    threads: int | None = None
    safety: SafetyPolicy = "flag"
    watermark: bool = True
    out: str = "pictures"
    format: str = "png"

    def __post_init__(self) -> None:
        check_kinds(self)
        check_choice("safety", self.safety, SAFETY_POLICIES)
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InvalidRequest(
                f"threads {self.threads} must be a whole number from 1 to {MAX_THREADS}", field="threads"
            )

    @property
    def loading(self) -> LoadOptions:
        """The options to load a model with."""
        return replace(self.options, batch_size=1) if self.deterministic else self.options

    def use_threads(self) -> None:
        """Have torch compute with so many threads, in this process."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)


# The VAE belongs to a request; a token has its own places.
_LOAD_KINDS = {name: kinds for name, kinds in field_kinds(LoadOptions).items() if name not in ("vae", "token")}
_OWN_KINDS = {name: kinds for name, kinds in field_kinds(RunSettings).items() if name != "options"}
_KINDS = _LOAD_KINDS | _OWN_KINDS

KEYS = (*(name for name in FIELDS if name not in _OWN_TO_A_PICTURE), PRESET, *_KINDS)
"""What the environment and the files may set."""

# Names in the environment that others than the settings read.
_INSTRUCTIONS = "SFUMATO_INSTRUCTIONS"
_READ_ELSEWHERE = frozenset(
    {"SFUMATO_HOME", "SFUMATO_MODEL_PATH", "SFUMATO_NO_KERNELS", "SFUMATO_API_KEY", _INSTRUCTIONS}
)
_OTHERS = ("SFUMATO_BENCH_", "SFUMATO_SERVE_")  # the benchmarks' and the server's


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every value that was set somewhere, and where: a flag's origin is "", others' a name for error messages."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def request(self, prompt: str, **changes: Any) -> Request:
        """A request of these settings. `InvalidRequest` says where a wrong value was set, unless by a flag."""
        fields = {name: value for name, value in self.values.items() if name in FIELDS}
        with_changes = {"prompt": prompt, **fields, **changes}
        with _naming_origin(self.origins):
            return Request(**with_changes)

    def check_effects(self, requests: Sequence[Request]) -> None:
        """Raise `InvalidRequest` where a flag has no effect on one of the requests."""
        flags = [name for name, origin in self.origins.items() if not origin]
        for request in requests:
            check_effect(request, flags)

    def note_preset(self, requests: Sequence[Request]) -> None:
        """One line on stderr: what these requests give up for the preset that was chosen."""
        given_up = list(dict.fromkeys(gives_up(request) for request in requests))
        if PRESET in self.values and given_up and given_up[0]:
            others = " (of the first picture)" if len(given_up) > 1 else ""
            write_note(f"preset {self.values[PRESET]}{others}: {given_up[0]}; near the exact picture, not the same")

    def run(self) -> RunSettings:
        """The settings that aren't a request's."""
        loading, own = (
            {name: value for name, value in self.values.items() if name in kinds} for kinds in (_LOAD_KINDS, _OWN_KINDS)
        )
        with _naming_origin(self.origins):
            return RunSettings(options=LoadOptions(**loading), **own)


@contextmanager
def _naming_origin(origins: Mapping[str, str]) -> Iterator[None]:
    """A refusal inside says where the value was set, unless by a flag."""
    try:
        yield
    except InvalidRequest as error:
        origin = origins.get(error.field or "")
        if not origin:
            raise
        raise InvalidRequest(f"{error} (set in {origin})", field=error.field) from error


def read_settings(
    given: FlagValues, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """Read everything that was set, the strongest source winning value by value.

    `given` are flags as text; input pictures among them are opened and checked. A preset counts where it was set: it
    wins over what stronger sources don't name, and loses to the values beside it. Raises `InvalidRequest`, or
    `InvalidConfig` naming the file and the key.
    """
    environment = os.environ if environment is None else environment
    layers: list[tuple[str, Mapping[str, Any]]] = [
        *((str(path), _read_file(path)) for path in reversed(tuple(_files(environment, folder or Path.cwd())))),
        ("the environment", _from_environment(environment)),
        ("", {name: _value(name, text) for name, text in given.items()}),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        origins |= {name: f"{ENVIRONMENT}{name.upper()}" if origin == "the environment" else origin for name in layer}
        with _naming_origin(origins):
            expanded = with_preset(layer)
        origins |= dict.fromkeys(expanded.keys() - layer.keys(), origins.get(PRESET, ""))
        values |= {**layer, **expanded}
    return Settings(values=values, origins=origins)


def user_file(environment: Mapping[str, str]) -> Path:
    """The user's own settings, in the place the XDG convention (on Windows, `APPDATA`) gives them."""
    home = environment.get("XDG_CONFIG_HOME") or environment.get("APPDATA")
    return (Path(home) if home else Path.home() / ".config") / "sfumato" / "config.toml"


def _files(environment: Mapping[str, str], folder: Path) -> Iterator[Path]:
    """The nearest `sfumato.toml` upwards of `folder`, then the user's; those that are there."""
    project = next((parent / FILE_NAME for parent in (folder, *folder.parents) if (parent / FILE_NAME).is_file()), None)
    if project is not None:
        yield project
    if (user := user_file(environment)).is_file():
        yield user


def _read_file(path: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        with path.open("rb") as file:
            values = tomllib.loads(file.read(MAX_BYTES).decode())
    except OSError as error:
        raise InvalidConfig(f"{path} can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(f"{path} is not TOML: {error}") from error
    for name in values:
        try:
            check_choice("the setting", name, KEYS)
        except InvalidRequest as error:
            raise InvalidConfig(f"{path}: {error}") from error
    return {name: _value(name, value) if isinstance(value, str) else value for name, value in values.items()}


def unknown_names(environment: Mapping[str, str]) -> Mapping[str, str | None]:
    """Find names that look like settings and are none, each with the setting it may have been meant for."""
    known = {ENVIRONMENT + name.upper() for name in KEYS} | _READ_ELSEWHERE
    unknown = [name for name in sorted(environment) if name.startswith(ENVIRONMENT) and name not in known]
    return {
        name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None)
        for name in unknown
        if not name.startswith(_OTHERS)
    }


def _from_environment(environment: Mapping[str, str]) -> Mapping[str, Any]:
    """Read what is set there. A name that is none is told, and not an error: it may be another version's.

    `InvalidRequest` for instructions that the kernels can't be compiled for: an engine would do without them.
    """
    if environment.get(_INSTRUCTIONS):
        from sfumato.engines.native_build import INSTRUCTIONS

        check_choice(_INSTRUCTIONS, environment[_INSTRUCTIONS], INSTRUCTIONS)
    for name, near in unknown_names(environment).items():
        logger.warning("%s is no setting%s", name, f": did you mean {near}?" if near else ", and not used")
    texts = {name: environment.get(ENVIRONMENT + name.upper()) for name in KEYS}
    return {name: _value(name, text) for name, text in texts.items() if text}


def _value(name: str, text: str) -> Any:
    if name == "seed" and text.strip().lower() == "random":
        import secrets

        return secrets.randbelow(2**32)
    if name in FIELDS:
        return field_value(name, text)
    return option_value(_KINDS.get(name, (str,)), text)
