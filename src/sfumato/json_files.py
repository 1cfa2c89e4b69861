"""Reading the JSON that a model brings: in bounded time and memory, and with one line for whatever is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from sfumato.errors import InvalidConfig, ModelNotFound

MAX_BYTES = 8 * 2**20  # CLIP's tokenizer.json, the largest there is, has 4
# Python's objects for a JSON text can take twenty times its size. CLIP's tokenizer.json has 250,000.
MAX_VALUES = 400_000
MAX_DEPTH = 32


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises as `read_text` and `parse_object` do, naming the file."""
    return parse_object(read_text(path), where=str(path))


def read_text(path: Path) -> str:
    """A small file of UTF-8 text. Raises `ModelNotFound` if it isn't there, else `InvalidConfig`."""
    try:
        if not path.is_file() and path.exists():
            raise InvalidConfig(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidConfig(f"{path} is too large for a config: at most {MAX_BYTES} bytes are read")
        return data.decode()
    except FileNotFoundError:
        raise ModelNotFound(f"{path} is missing: the model is incomplete") from None
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InvalidConfig(f"{path} can't be read: {error.strerror or error}") from error


def parse_object(text: str, *, where: str) -> dict[str, Any]:
    """The JSON object in `text`; `where` starts each message. Raises `InvalidConfig`, also for numbers that aren't."""
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise InvalidConfig(f"{where} has too many values for a config: at most {MAX_VALUES} are read")

    def no_constant(name: str) -> NoReturn:
        raise InvalidConfig(f"{where} has {name}, which is not JSON")

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise InvalidConfig(f"{where} has the number {digits[:40]}, which is too large")
        return value

    try:
        value = json.loads(text, parse_constant=no_constant, parse_float=finite)
    except InvalidConfig:
        raise
    except RecursionError as error:
        raise InvalidConfig(f"{where} is nested too deeply for a config") from error
    except ValueError as error:
        raise InvalidConfig(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where} must hold a JSON object, not {type(value).__name__}")
    _check_depth(value, where)
    return value


def _check_depth(value: dict[str, Any], where: str) -> None:
    """Refuse values nested so deeply that whoever walks or prints them would run out of stack."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    raise InvalidConfig(f"{where} is nested too deeply for a config: at most {MAX_DEPTH} levels")
