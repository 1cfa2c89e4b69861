"""Rows of a table by rules: the same as Python's own comparison of every row, counted, and resumable."""

from __future__ import annotations

import csv
import glob
import math
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from sfumato.data.laion_filter import PRESETS, Rules, filter_tables
from sfumato.data.tables import Tables, source, text
from sfumato.errors import Cancelled, DataError, InvalidRequest
from sfumato.progress import Cancellation

COLUMNS = "URL VARCHAR, TEXT VARCHAR, WIDTH INTEGER, HEIGHT INTEGER, similarity DOUBLE, punsafe DOUBLE, "
COLUMNS += "pwatermark DOUBLE, AESTHETIC_SCORE DOUBLE"

Row = tuple[Any, ...]


def rows(count: int, seed: int) -> list[Row]:
    """Rows of every kind, at the thresholds and without values, too."""
    draw = random.Random(seed)
    return [
        (
            f'https://example.org/it\'s "{i}"',
            f"picture {i}; DROP TABLE",
            draw.choice([None, 511, 512, 1023, 1024, 2000]),
            draw.choice([511, 512, 1024, 2000]),
            draw.uniform(0.2, 0.4),
            draw.choice([None, math.nan, 0.0, 0.1, 0.5]),
            draw.choice([None, math.nan, 0.1, 0.5, 0.49999]),
            draw.choice([None, math.nan, math.inf, 4.9, 5.0, 5.01, 6.5]),
        )
        for i in range(count)
    ]


def write(path: Path, entries: list[Row], columns: str = COLUMNS) -> Path:
    lines = path.with_suffix(".csv")
    with lines.open("w", newline="") as file:
        csv.writer(file).writerows(entries)
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE rows ({columns})")
    connection.execute(
        "INSERT INTO rows SELECT * FROM read_csv($1, header = false, all_varchar = true)", [glob.escape(str(lines))]
    )
    connection.execute(f"COPY rows TO {text(str(path))} (FORMAT parquet, ROW_GROUP_SIZE 2048)")
    lines.unlink()
    return path


def read(path: Path) -> list[Row]:
    return duckdb.connect().execute(f"SELECT * FROM {source(path)}").fetchall()


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def improved(row: Row) -> list[bool]:
    """The rules of laion-improved-aesthetics as the model card has them, in words of Python."""
    _, _, width, height, _, _, watermark, score = row
    return [
        width is not None and width >= 512 and height >= 512,
        known(score) and score > 5.0,
        known(watermark) and watermark < 0.5,
    ]


def test_the_rows_and_the_funnel_are_those_of_a_loop(tmp_path: Path) -> None:
    entries = rows(5000, 0)
    report = filter_tables(
        [write(tmp_path / "a.parquet", entries)], tmp_path / "kept", PRESETS["laion-improved-aesthetics"]
    )
    expected = [row for row in entries if all(improved(row))]
    assert repr(read(tmp_path / "kept" / "a.parquet")) == repr(expected)  # repr, since NaN is not itself
    steps = [sum(all(improved(row)[:i]) for row in entries) for i in range(4)]
    assert list(report.funnel.values()) == steps and report.kept == len(expected) > 100
    assert list(report.funnel) == ["rows", "min_side", "aesthetics_above", "watermark_below"]
    assert list(report.alone.values()) == [sum(not improved(row)[i] for row in entries) for i in range(3)]


@pytest.mark.parametrize(
    ("rules", "condition"),
    [
        (PRESETS["laion2B-en"], lambda row: True),
        (PRESETS["laion-high-resolution"], lambda row: row[2] is not None and min(row[2], row[3]) >= 1024),
        (PRESETS["laion-aesthetics-v2-5+"], lambda row: known(row[7]) and row[7] >= 5.0),
        (Rules(unsafe_below=0.1), lambda row: known(row[5]) and row[5] < 0.1),
        (Rules(similarity_above=0.3), lambda row: row[4] > 0.3),
    ],
    ids=["all", "high-resolution", "aesthetics", "unsafe", "similarity"],
)
def test_every_rule(tmp_path: Path, rules: Rules, condition: Any) -> None:
    entries = rows(800, 1)
    filter_tables([write(tmp_path / "a.parquet", entries)], tmp_path / "kept", rules)
    assert repr(read(tmp_path / "kept" / "a.parquet")) == repr([row for row in entries if condition(row)])


def test_columns_of_other_names_and_removals(tmp_path: Path) -> None:
    entries = [(f"u{i}", i / 10, i) for i in range(100)]
    path = write(tmp_path / "it's [1].parquet", entries, '"the ""url""" VARCHAR, score DOUBLE, other INTEGER')
    (tmp_path / "gone.txt").write_text("u60\n\n u70 \nu5\n'); DROP TABLE removed; --\n")
    with pytest.raises(DataError, match=r"no column aesthetic_score or .*--column aesthetics=NAME"):
        filter_tables([path], tmp_path / "kept", Rules(aesthetics_above=5))
    report = filter_tables(
        [path],
        tmp_path / "kept",
        Rules(aesthetics_above=5),
        columns={"aesthetics": "SCORE", "url": 'the "url"'},
        removals=tmp_path / "gone.txt",
    )
    expected = [row for row in entries if row[0] not in ("u60", "u70", "u5") and row[1] > 5]
    assert read(tmp_path / "kept" / "it's [1].parquet") == expected
    assert report.funnel == {"rows": 100, "removals": 97, "aesthetics_above": len(expected)}


def test_stopped_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.parquet", rows(3000, i)) for i in range(4)]
    rules = PRESETS["laion-improved-aesthetics"]
    whole = filter_tables(paths, tmp_path / "whole", rules)
    stop = Cancellation()
    with pytest.raises(Cancelled):
        filter_tables(
            paths,
            tmp_path / "stopped",
            rules,
            on_progress=lambda event: stop.cancel() if event.step == 2 else None,
            cancellation=stop,
        )
    assert sorted(path.name for path in (tmp_path / "stopped").glob("*")) == [".lock", "0.parquet", "1.parquet"]
    (tmp_path / "stopped" / ".2.parquet.0123.part").write_bytes(b"of a process that was killed")
    assert filter_tables(paths, tmp_path / "stopped", rules) == whole
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("*")} for name in ("stopped", "whole")]
    assert contents[0] == contents[1]
    assert filter_tables(paths, tmp_path / "whole", rules) == whole
    with pytest.raises(InvalidRequest, match=r"0\.parquet was made by other rules"):
        filter_tables(paths, tmp_path / "whole", Rules(min_side=3))


def test_what_is_no_table_is_said_in_a_line(tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet", rows(100, 0))
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "empty.parquet").write_bytes(b"")
    for name in ("text", "cut", "empty"):
        with pytest.raises(DataError, match=f"{name}.parquet can't be read as a table") as caught:
            filter_tables([tmp_path / f"{name}.parquet"], tmp_path / "kept", Rules(min_side=9))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is no file"):
        filter_tables([tmp_path / "nowhere.parquet"], tmp_path / "kept", Rules())
    with pytest.raises(DataError, match="there are no tables"):
        filter_tables([], tmp_path / "kept", Rules())
    with pytest.raises(InvalidRequest, match="nan must be a finite number"):
        Rules(aesthetics_above=math.nan)
    with pytest.raises(InvalidRequest, match="column 'size' is unknown"):
        filter_tables([good], tmp_path / "kept", Rules(), columns={"size": "WIDTH"})
    assert list((tmp_path / "kept").glob("*.parquet")) == []


def test_a_query_reaches_nothing_else(tmp_path: Path) -> None:
    tables = Tables(memory=128)
    with pytest.raises(DataError):
        tables.columns(Path("https://127.0.0.1:9/a.parquet"))
    (tmp_path / "a.parquet").write_bytes(write(tmp_path / "b.parquet", rows(3, 0)).read_bytes())
    with pytest.raises(DataError):  # a star is a letter of the name
        tables.columns(tmp_path / "*.parquet")
    tables.close()
