"""Filter a list of made-up pictures with LAION's columns, ten million or so: time and peak memory.

    SFUMATO_ROWS=10000000 SFUMATO_FOLDER=/tmp python -m benchmarks data_filter

The list is written once (about 1 GB for ten million rows) and kept in the folder. Its scores are spread as LAION's
roughly are, so that the rules leave about as much; addresses and texts are nonsense of the usual lengths.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

COLUMNS = """
    'https://example.org/' || md5(i::VARCHAR) || '/' || (hash(i) % 100000)::VARCHAR || '.jpg' AS "URL",
    'A picture of ' || substr(md5((i * 7)::VARCHAR), 1, 8) || repeat(' ' || substr(md5((i * 3)::VARCHAR), 1, 6),
        (hash(i, 1) % 14)::INT) AS "TEXT",
    (exp(5.0 + 2.5 * ((hash(i, 2) % 100000) / 100000.0)))::INT AS "WIDTH",
    (exp(5.0 + 2.5 * ((hash(i, 3) % 100000) / 100000.0)))::INT AS "HEIGHT",
    (0.28 + 0.1 * ((hash(i, 4) % 100000) / 100000.0)) AS similarity,
    pow((hash(i, 5) % 100000) / 100000.0, 6) AS punsafe,
    pow((hash(i, 6) % 100000) / 100000.0, 2) AS pwatermark,
    (3.5 + ((hash(i, 7) % 100000) + (hash(i, 8) % 100000) + (hash(i, 9) % 100000)) / 100000.0)::FLOAT
        AS "AESTHETIC_SCORE"
"""


def main() -> None:
    rows = int(os.environ.get("SFUMATO_ROWS", "1000000"))
    folder = Path(os.environ.get("SFUMATO_FOLDER", tempfile.gettempdir())) / f"laion-like-{rows}"
    folder.mkdir(exist_ok=True)
    path = folder / "metadata.parquet"
    if not path.exists():
        began = time.perf_counter()
        duckdb.sql(f"SELECT {COLUMNS} FROM range({rows}) t(i)").write_parquet(str(path), compression="snappy")
        print(f"made {path}: {path.stat().st_size / 1e6:.0f} MB in {time.perf_counter() - began:.0f} s")
    for memory in ("512", "2048"):
        with tempfile.TemporaryDirectory(dir=folder) as kept:
            command = [sys.executable, "-c", "from sfumato.cli.entry import main; main()", "data", "filter", str(path)]
            options = ["-o", kept, "--preset", "laion-improved-aesthetics", "--unsafe", "0.1", "--memory", memory]
            began = time.perf_counter()
            subprocess.run([*command, *options], check=True)
            seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest child so far
        print(f"--memory {memory}: {seconds:.1f} s, {rows / seconds / 1e6:.2f} M rows/s, peak at most {peak:.0f} MB")


if __name__ == "__main__":
    main()
