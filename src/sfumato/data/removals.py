"""Pictures that are to be left out wherever they turn up: people ask for it, and lists of known harm are published."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.samples import Record
from sfumato.errors import DataError

_HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Removals:
    """Addresses, and SHA-256 of picture files as they were downloaded."""

    addresses: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()

    def name(self, record: Record) -> bool:
        """Whether a sample is to be removed: by its fields `url` and `sha256`, as img2dataset writes them."""
        return record.fields.get("url") in self.addresses or record.fields.get("sha256") in self.hashes


def read_removals(path: Path) -> Removals:
    """A text file with an address or a SHA-256 (64 hexadecimal digits) a line. `DataError` where it can't be read."""
    try:
        lines = {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}): give a text file with an address or hash a line") from error
    hashes = {line for line in lines if _HASH.fullmatch(line)}
    return Removals(frozenset(lines - hashes - {""}), frozenset(digest.lower() for digest in hashes))
