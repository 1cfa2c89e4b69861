"""A pinned list of prompts: one JSON object a line, named by the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.files import write_bytes
from sfumato.runtime import logger

MAX_BYTES = 512 * 2**20  # COCO's training captions have 92 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text, with whatever else is known of it (an image's id, a category, what a scene shows) as JSON values."""

    text: str
    fields: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": self.text, **self.fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptList:
    """Prompts in their order, and the hash that pins them."""

    prompts: tuple[Prompt, ...]
    sha256: str

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]

    def first(self, count: int) -> PromptList:
        """The first `count` prompts, a list with its own hash."""
        return self if count >= len(self.prompts) else pinned(self.prompts[:count])


def pinned(prompts: Sequence[Prompt]) -> PromptList:
    """Prompts with the hash of their lines."""
    return PromptList(prompts=tuple(prompts), sha256=hashlib.sha256(_lines(prompts)).hexdigest())


def write_prompts(prompts: PromptList, path: Path, *, overwrite: bool = False) -> None:
    """Write the list. Its bytes are what was hashed."""
    write_bytes(path, _lines(prompts.prompts), overwrite=overwrite)


def read_prompts(path: Path) -> PromptList:
    """A list from a file: COCO captions (`.json`), an object a line (`.jsonl`: `prompt`, or else `caption` or `text`),
    or a prompt a line. Blank lines are left out and duplicates kept, each with a warning. `InvalidRequest` says where.
    """
    read = _READERS.get(path.suffix.lower(), _from_text)
    found = read(_text(path), path)
    prompts = [prompt for prompt in found if prompt.text]
    if blank := len(found) - len(prompts):
        logger.warning("%s: %d blank prompt(s) were left out", path, blank)
    if not prompts:
        raise InvalidRequest(f"{path} has no prompts: write one a line")
    if repeated := len(prompts) - len({prompt.text for prompt in prompts}):
        logger.warning("%s: %d prompt(s) come a second time; each has a seed of its own", path, repeated)
    return pinned(prompts)


def drawn(prompts: PromptList, count: int, seed: int) -> PromptList:
    """`count` of the prompts at random, in the drawn order; all, as they are, where there are no more than that."""
    if count >= len(prompts.prompts):
        return prompts
    order = np.random.RandomState(seed).permutation(len(prompts.prompts))  # the same in every version of NumPy
    return pinned([prompts.prompts[i] for i in order[:count]])


def _lines(prompts: Sequence[Prompt]) -> bytes:
    lines = [json.dumps(prompt.to_dict(), ensure_ascii=False, sort_keys=True) + "\n" for prompt in prompts]
    return "".join(lines).encode()


def _from_coco(text: str, path: Path) -> list[Prompt]:
    """COCO's captions as prompts, in the order of the annotations' ids, the same in every copy of the file."""
    values = _json(text, str(path))
    annotations = values.get("annotations") if isinstance(values, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise InvalidRequest(f"{path} holds no COCO captions: it needs a list 'annotations'")
    found = []
    for number, entry in enumerate(annotations):
        kinds = {"id": int, "image_id": int, "caption": str}
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
            raise InvalidRequest(f"{path}: annotation {number} has no id, image_id and caption")
        fields = {"image_id": entry["image_id"], "caption_id": entry["id"]}
        found.append(Prompt(text=_clean(entry["caption"]), fields=fields))
    return sorted(found, key=lambda prompt: prompt.fields["caption_id"])


def _from_jsonl(text: str, path: Path) -> list[Prompt]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            found.append(Prompt(text="", fields={}))
            continue
        values = _json(line, f"{path}, line {number}")
        name = next((name for name in ("prompt", "caption", "text") if isinstance(values, dict) and name in values), "")
        if not name or not isinstance(values[name], str):
            raise InvalidRequest(f'{path}, line {number}: not an object with a prompt, as in {{"prompt": "a cat"}}')
        fields = {key: value for key, value in values.items() if key != name}
        found.append(Prompt(text=_clean(values[name]), fields=fields))
    return found


def _from_text(text: str, path: Path) -> list[Prompt]:
    return [Prompt(text=_clean(line), fields={}) for line in text.splitlines()]


_READERS: Mapping[str, Callable[[str, Path], list[Prompt]]] = {
    ".json": _from_coco,
    ".jsonl": _from_jsonl,
    ".ndjson": _from_jsonl,
}


def _clean(text: str) -> str:
    """The text without line ends and outer spaces, some of which COCO's captions have."""
    return " ".join(text.split())


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRequest(f"{path} is above the limit of {MAX_BYTES >> 20} MB for prompts: split it")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read ({error.strerror}): give the path of a file of prompts") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text: save it as such") from error
