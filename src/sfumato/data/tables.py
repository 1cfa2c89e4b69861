"""Parquet files of any size, read and written by DuckDB a few rows at a time."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfumato.errors import DataError, OutputError
from sfumato.files import atomic_path
from sfumato.runtime import require

_FULL = "No space left on device"


class Tables:
    """A connection that holds nothing but its settings. `memory` is what it may use, in MB."""

    def __init__(self, *, memory: int, spill: Path | None = None, threads: int | None = None) -> None:
        duckdb = require("duckdb", extra="data")
        self._error: type[Exception] = duckdb.Error
        settings: dict[str, Any] = {
            "memory_limit": f"{memory}MB",
            "threads": threads or os.cpu_count() or 1,
            # nothing is downloaded, whatever a query names
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "temp_directory": str(spill) if spill else "",
        }
        self._connection = duckdb.connect(":memory:", config=settings)

    def columns(self, path: Path) -> list[str]:
        """The names of a parquet file's columns."""
        with self._naming(path):
            self._connection.execute(f"SELECT * FROM {source(path)} LIMIT 0")
            return [str(column[0]) for column in self._connection.description or ()]

    def one(self, path: Path, columns: Sequence[str]) -> tuple[Any, ...]:
        """The one row that expressions over a file's rows give."""
        with self._naming(path):
            row = self._connection.execute(f"SELECT {', '.join(columns)} FROM {source(path)}").fetchone()
        return tuple(row or ())

    def rows(self, path: Path, query: str = "*") -> list[dict[str, Any]]:
        """Every row of a file, by the names of the columns."""
        with self._naming(path):
            cursor = self._connection.execute(f"SELECT {query} FROM {source(path)}")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def note(self, path: Path, key: str) -> str | None:
        """What was written into a parquet file under `key`, None where nothing was."""
        with self._naming(path):
            rows = self._connection.execute(
                f"SELECT key, value FROM parquet_kv_metadata({text(_literal(path))})"
            ).fetchall()
        return next(
            (bytes(value).decode(errors="replace") for name, value in rows if bytes(name) == key.encode()), None
        )

    def select(self, path: Path, where: str, to: Path, notes: Mapping[str, str]) -> None:
        """Write the rows of a file that `where` is true of, in their order, whole or not at all."""
        written = ", ".join(f"{text(name)}: {text(value)}" for name, value in notes.items())
        with atomic_path(to, overwrite=True) as temporary, self._naming(path, writing=to):
            self._connection.execute(
                f"COPY (SELECT * FROM {source(path)} WHERE {where}) TO {text(str(temporary))} "
                f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{written}}})"
            )

    def remember(self, name: str, lines: Path) -> None:
        """Make a table `name` of one column `line` from a text file."""
        with self._naming(lines):
            self._connection.execute(
                f"CREATE TABLE {identifier(name)} AS SELECT DISTINCT trim(line) AS line "
                f"FROM read_csv({text(_literal(lines))}, columns = {{'line': 'VARCHAR'}}, header = false, "
                "delim = '\x01', quote = '', escape = '', auto_detect = false) WHERE trim(line) <> ''"
            )

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _naming(self, path: Path, *, writing: Path | None = None) -> Iterator[None]:
        """Whatever DuckDB says becomes one line with the name of the file it is about."""
        try:
            yield
        except self._error as error:
            reason = str(error).partition("\n")[0][:300]
            if _FULL in str(error):
                raise OutputError(
                    f"{writing or path}: the disk is full: free some space, or write elsewhere"
                ) from error
            raise DataError(f"{path} can't be read as a table ({reason})") from error


def source(path: Path) -> str:
    """The parquet file at `path` and no other, as a table of a query."""
    return f"read_parquet({text(_literal(path))})"


def identifier(name: str) -> str:
    """A column's name in a query, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text in a query, whatever is in it."""
    return "'" + value.replace("'", "''") + "'"


def number(value: float) -> str:
    """A number in a query."""
    assert math.isfinite(value)
    return repr(value)


def _literal(path: Path) -> str:
    """A path that isn't taken for a pattern."""
    return glob.escape(str(path))
