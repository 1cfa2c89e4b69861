"""The requests of one command: prompts from the command line and from files, with the settings that hold for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sfumato.choices import check_choice
from sfumato.cli.options.settings import Settings
from sfumato.errors import InvalidRequest
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.request import Request, check_effect

MAX_BYTES = 16 * 2**20
STDIN = "-"

_FIELDS = tuple(field.name for field in fields(Request))
_SOURCES = ("init_image", "mask")


def requests_for(prompts: Sequence[str], prompts_file: Path | None, settings: Settings) -> list[Request]:
    """A request for each prompt given and each line of the file. `InvalidRequest` where there is none, or one is wrong.

    A `.jsonl` file holds an object of request fields a line, input pictures as paths relative to the file; every
    other file, and stdin for `-`, a prompt a line. There, lines that are empty or begin with `#` are left
    out; a prompt that begins with that sign is written `\\#…`.
    """
    requests = [settings.request(prompt) for prompt in prompts]
    if prompts_file is not None:
        read = _from_jsonl if prompts_file.suffix.lower() in (".jsonl", ".ndjson") else _from_text
        requests += read(prompts_file, settings)
    if not requests:
        raise InvalidRequest('no prompt was given: say what to paint, as in: sfumato generate "a red heart"')
    return requests


def _from_text(path: Path, settings: Settings) -> list[Request]:
    lines = [line.strip() for line in _lines(path)]
    prompts = [
        line.removeprefix("\\") if line.startswith("\\#") else line for line in lines if line[:1] not in ("", "#")
    ]
    return [settings.request(prompt) for prompt in prompts]


def _from_jsonl(path: Path, settings: Settings) -> list[Request]:
    requests = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                requests.append(_request(line, path.parent, settings))
            except InvalidRequest as error:
                raise InvalidRequest(f"{path}, line {number}: {error}") from error
    return requests


def _request(line: str, folder: Path, settings: Settings) -> Request:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON ({error}): write an object of request fields a line") from error
    if not isinstance(values, dict) or "prompt" not in values:
        raise InvalidRequest('not an object with a prompt: write request fields, as in {"prompt": "a cat"}')
    for name in values:
        check_choice("the field", name, _FIELDS)
    sources = {name: _source(name, values[name], folder) for name in _SOURCES if values.get(name) is not None}
    request = settings.request(**{**values, **sources})
    check_effect(request, values)
    return request


def _source(name: str, value: Any, folder: Path) -> ImageSource:
    from sfumato.pictures.untrusted_pictures import open_picture

    if isinstance(value, dict):
        return ImageSource.from_dict(value)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be the path of a picture")
    return open_picture(folder / value)[1]


def _lines(path: Path) -> list[str]:
    """The lines of a text file. Raises `InvalidRequest`, for a pipe too: it would be waited for without a word."""
    name = "what stdin gave" if str(path) == STDIN else f"the prompts file {path}"
    try:
        written = str(path).startswith(("/dev/fd/", "/proc/"))  # the pipe of a shell's <(…)
        if path.is_fifo() and not written:
            raise InvalidRequest(f"{name} is a pipe: write --prompts-file - and send the prompts to stdin")
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"{name} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8 text: save it as such") from error
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"{name} is above the limit of {MAX_BYTES >> 20} MB: split it")
    return text.splitlines()
