"""What a server is started with: `ServerSettings`, from flags, the environment and a file."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.toml_files import from_values

ENVIRONMENT = "SFUMATO_SERVE_"
KEY_VARIABLE = "SFUMATO_API_KEY"
MIN_KEY = 16  # characters: what people type as a password is shorter, and is guessed

# What no setting changes.
MAX_BODY = 2**20  # bytes of a JSON body
MAX_STEPS = 150
MAX_COUNT = 100
MAX_PROMPT = 32_000  # characters
UNSAID_SIDE = 512  # what a request without a size is taken for: the largest size that Stable Diffusion v1 models make
EVENTS_KEPT = 24 * 3600.0  # seconds; as long as an idempotency key holds
GRACE = 25.0  # seconds that a picture under way has at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything a server is told when it starts. Raises `InvalidConfig` for what can't be meant or isn't safe."""

    host: Annotated[str, "address to listen on; another than this machine's own needs keys"] = "127.0.0.1"
    port: Annotated[int, "0: any free one"] = 7860
    folder: Annotated[str, "jobs and their pictures"] = "served"
    models: Annotated[tuple[str, ...], "names clients may ask for; the first is the default"] = ("pocket",)
    keys: Annotated[tuple[str, ...], "SHA-256 of each API key, in hexadecimal"] = ()
    allow_hosts: Annotated[tuple[str, ...], "names, beside localhost and addresses, under which it may be asked"] = ()
    public_url: Annotated[str, "its address in front of a proxy: https://pictures.example.org"] = ""
    max_waiting: Annotated[int, "jobs that may wait"] = 64
    max_waiting_each: Annotated[int, "jobs that may wait for one key"] = 32
    max_pixels: Annotated[int, "pixels of one picture"] = 1024 * 1024
    log_prompts: Annotated[bool, "write prompts into the log"] = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("max_waiting", 1, 100_000),
            ("max_waiting_each", 1, 100_000),
            ("max_pixels", 64 * 64, 8192 * 8192),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidConfig(f"{name} {getattr(self, name)} must be a whole number from {low} to {high}")
        if not self.models:
            raise InvalidConfig("models is empty: name at least one model to serve")
        url = self.public_url
        if url and (not url.startswith(("http://", "https://")) or url.count("/") != 2):
            raise InvalidConfig(f"public_url {url!r} must be an origin: https://example.org, without a path")
        if not self.is_loopback and not self.keys:
            raise InvalidConfig(
                f"host {self.host} can be reached by others, and there is no API key: set one in {KEY_VARIABLE} or "
                "--api-key-file, or listen on 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def waiting_each(self) -> int:
        """Jobs one caller may have waiting: without keys all callers are one."""
        return min(self.max_waiting_each, self.max_waiting) if self.keys else self.max_waiting


def read_server_settings(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    key_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerSettings:
    """Settings from `flags` (what is None wasn't given), then `SFUMATO_SERVE_…`, then the TOML file `config`.

    API keys are read from the lines of `key_file` and from `SFUMATO_API_KEY`, and kept as their SHA-256 only. Raises
    `InvalidConfig` for what can't be read, meant, or isn't safe.
    """
    environment = os.environ if environment is None else environment
    kinds = get_type_hints(ServerSettings)
    values = _file_values(config) if config else {}
    for name in kinds.keys() - {"keys"}:
        if text := environment.get(ENVIRONMENT + name.upper()):
            values[name] = _from_text(kinds[name], text, ENVIRONMENT + name.upper())
    values |= {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if value not in (None, [])
    }
    keys = [*values.get("keys", []), *_given_keys(key_file, environment)]
    return from_values(ServerSettings, values | {"keys": keys})


def _file_values(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path} can't be read ({error.strerror}): give the path of a TOML file") from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is not TOML: {error}") from error


def _given_keys(key_file: Path | None, environment: Mapping[str, str]) -> list[str]:
    from sfumato.serve.security.api_keys import key_hash

    found = [environment[KEY_VARIABLE]] if environment.get(KEY_VARIABLE) else []
    if key_file:
        try:
            found += [line.strip() for line in key_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{key_file} can't be read ({error}): give a file with one API key a line") from error
    for key in found:
        if len(key) < MIN_KEY:
            raise InvalidConfig(f"an API key of {len(key)} characters is easily guessed: use at least {MIN_KEY}")
    return [key_hash(key) for key in found]


def _from_text(kind: Any, text: str, where: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise InvalidConfig(f"{where} {text!r} must be true or false")
        return text.lower() in ("true", "1")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise InvalidConfig(f"{where} {text!r} must be a whole number") from None
    assert get_args(kind)
    return [part.strip() for part in text.split(",") if part.strip()]


def model_choice(name: str, models: tuple[str, ...]) -> str:
    """The served model of that name, the default for "". `InvalidRequest` names the field and what there is."""
    if not name:
        return models[0]
    if name not in models:
        raise InvalidRequest(f"model {name!r} is not served here: choose from {', '.join(models)}", field="model")
    return name
