"""Which rows of a list of pictures are worth a download: the rules that Stable Diffusion's data sets were made by.

    FOLDER/NAME.parquet      the rows of a file NAME.parquet that every rule lets through, in their order
    FOLDER/manifest.json     rules, columns, and how many rows each rule left of each file; written last

Files are gone through one by one: stopped or killed, the work goes on with the next one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.data.shards import MANIFEST
from sfumato.data.tables import Tables, identifier, number
from sfumato.errors import DataError, InvalidRequest
from sfumato.files import locked, make_folder, remove_leftovers, write_text
from sfumato.progress import Cancellation, OnProgress, Progress, ignore

FORMAT = "sfumato filter 1"
_NOTE = "sfumato.filter"
_REMOVED = "removed"

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "url": ("url",),
    "text": ("text", "caption", "top_caption"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "aesthetics": ("aesthetic_score", "aesthetic", "aesthetics", "prediction"),
    "watermark": ("pwatermark",),
    "unsafe": ("punsafe",),
    "similarity": ("similarity",),
}
"""What lists of LAION's kind call a column, in small letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a row must fulfil; None is no rule. A row that has no value where a rule needs one doesn't fulfil it.

    `min_side` pixels in width and in height; an aesthetics score above one number or from another one on; a probability
    of a watermark, and of being unsafe, below; a similarity of picture and text above. Wrong values raise
    `InvalidRequest`.
    """

    min_side: int | None = None
    aesthetics_above: float | None = None
    aesthetics_from: float | None = None
    watermark_below: float | None = None
    unsafe_below: float | None = None
    similarity_above: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                raise InvalidRequest(f"{field.name} {value} must be a finite number")

    def values(self) -> dict[str, Any]:
        """The rules that are set, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


PRESETS: Mapping[str, Rules] = {
    "laion2B-en": Rules(),
    "laion-high-resolution": Rules(min_side=1024),
    "laion-improved-aesthetics": Rules(min_side=512, aesthetics_above=5.0, watermark_below=0.5),
    "laion-aesthetics-v2-5+": Rules(aesthetics_from=5.0),
}
"""The data sets of the model card, by what they are said to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    column: str
    condition: Callable[[str, Any], str]


def _at_least(column: str, value: Any) -> str:
    return f"{column} >= {number(value)}"


def _score_above(column: str, value: Any) -> str:  # NaN would be above everything
    return f"{column} > {number(value)} AND {column} <= {number(1e300)}"


def _score_from(column: str, value: Any) -> str:
    return f"{column} >= {number(value)} AND {column} <= {number(1e300)}"


def _below(column: str, value: Any) -> str:
    return f"{column} < {number(value)}"


_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "min_side": (_Rule(column="width", condition=_at_least), _Rule(column="height", condition=_at_least)),
    "aesthetics_above": (_Rule(column="aesthetics", condition=_score_above),),
    "aesthetics_from": (_Rule(column="aesthetics", condition=_score_from),),
    "watermark_below": (_Rule(column="watermark", condition=_below),),
    "unsafe_below": (_Rule(column="unsafe", condition=_below),),
    "similarity_above": (_Rule(column="similarity", condition=_score_above),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterReport:
    """What filtering came to: `files` were gone through. `funnel` says how many rows were left after each rule, the
    first entry being all of them; `alone` how many each rule refuses by itself."""

    files: int
    funnel: Mapping[str, int]
    alone: Mapping[str, int]

    @property
    def kept(self) -> int:
        return list(self.funnel.values())[-1]


def filter_tables(
    paths: Sequence[Path],
    folder: Path,
    rules: Rules,
    *,
    columns: Mapping[str, str] | None = None,
    removals: Path | None = None,
    memory: int = 2048,
    threads: int | None = None,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> FilterReport:
    """Write the rows of parquet files that fulfil every rule to `folder`, file by file, and count.

    `columns` names columns where `COLUMNS` doesn't know them. Rows whose address is a line of the file `removals` are
    left out first. `memory` in MB is what reading and writing may take.

    `DataError` for a file that can't be read or lacks a column that a rule needs, and for two files of one name;
    `InvalidRequest` where the folder holds the result of other rules.
    """
    if not paths:
        raise DataError("there are no tables to filter: give *.parquet files, or a folder of them")
    names = [path.name for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"two of the tables are called {twice!r:.80}: filter them into two folders")
    make_folder(folder)
    with locked(folder / ".lock"):
        remove_leftovers(folder)
        tables = Tables(memory=memory, spill=folder / ".spill", threads=threads)
        try:
            if removals is not None:
                tables.remember(_REMOVED, removals)
            work = _Work(tables, folder, rules, dict(columns or {}), removals)
            counted = []
            for done, path in enumerate(paths):
                on_progress(Progress(stage="samples", step=done, steps=len(paths)))
                (cancellation or Cancellation()).check()
                counted.append(work.file(path))
            on_progress(Progress(stage="samples", step=len(paths), steps=len(paths)))
        finally:
            tables.close()
        manifest = {"format": FORMAT, **work.about, "files": dict(zip(names, counted, strict=True))}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n", overwrite=True)
    return FilterReport(
        files=len(paths),
        funnel=_summed([count["funnel"] for count in counted]),
        alone=_summed([count["alone"] for count in counted]),
    )


class _Work:
    """What one call does to each file."""

    def __init__(
        self, tables: Tables, folder: Path, rules: Rules, columns: dict[str, str], removals: Path | None
    ) -> None:
        unknown = sorted(set(columns) - set(COLUMNS))
        if unknown:
            raise InvalidRequest(f"column {unknown[0]!r:.40} is unknown: there are {', '.join(COLUMNS)}")
        self.tables, self.folder, self.rules, self.columns, self.removals = tables, folder, rules, columns, removals
        self.about = {"rules": rules.values(), "columns": columns, "removals": removals.name if removals else None}

    def file(self, path: Path) -> dict[str, Any]:
        """Filter one file, or find that it is done. What is counted is kept in the result itself."""
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise DataError(f"{path} is no file: give *.parquet files, or a folder of them")
        asked = {**self.about, "bytes": size}
        to = self.folder / path.name
        if to.exists():
            note = json.loads(self.tables.note(to, _NOTE) or "{}")
            if {name: note.get(name) for name in asked} != asked:
                raise InvalidRequest(f"{to} was made by other rules or of another file: give another folder")
            return dict(note["counted"])
        conditions = self._conditions(path)
        counted = self._count(path, conditions)
        where = " AND ".join(f"({condition})" for condition in conditions.values()) or "true"
        self.tables.select(path, where, to, {_NOTE: json.dumps({**asked, "counted": counted})})
        return counted

    def _conditions(self, path: Path) -> dict[str, str]:
        """The rules for a file's columns, in the order they are applied."""
        names = self.tables.columns(path)
        conditions = {}
        if self.removals is not None:
            url = self._column("url", names, path, "removals")
            conditions["removals"] = f"coalesce({url} NOT IN (SELECT line FROM {identifier(_REMOVED)}), false)"
        for name, value in self.rules.values().items():
            conditions[name] = " AND ".join(
                rule.condition(self._column(rule.column, names, path, name), value) for rule in _RULES[name]
            )
        return conditions

    def _column(self, role: str, names: Sequence[str], path: Path, rule: str) -> str:
        known = (self.columns[role].lower(),) if role in self.columns else COLUMNS[role]
        found = next((name for known_name in known for name in names if name.lower() == known_name), None)
        if found is None:
            raise DataError(
                f"{path} has no column {' or '.join(known)}, which {rule} needs: name it with --column {role}=NAME"
            )
        return identifier(found)

    def _count(self, path: Path, conditions: Mapping[str, str]) -> dict[str, Any]:
        """One pass over the columns that rules need."""
        wanted, passed = ["count(*)"], ""
        for condition in conditions.values():
            passed += f"{' AND ' if passed else ''}({condition})"
            wanted += [f"count(*) FILTER ({passed})", f"count(*) FILTER (({condition}) IS NOT true)"]
        counts = self.tables.one(path, wanted)
        left = dict(zip(conditions, counts[1::2], strict=True))
        return {"funnel": {"rows": counts[0], **left}, "alone": dict(zip(conditions, counts[2::2], strict=True))}


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def parquet_files(sources: Sequence[Path]) -> list[Path]:
    """The files given, and those in the folders given, in the order of their names."""
    found: list[Path] = []
    for path in sources:
        found += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return found
