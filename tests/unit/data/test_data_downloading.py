"""What is done with img2dataset's output. The program here is a stand-in that writes the same files; the real one is
run by `benchmarks/data_download.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb
import pytest

from sfumato.data.downloading import DownloadOptions, download
from sfumato.data.removals import read_removals
from sfumato.data.reports import verify
from sfumato.data.shards import open_shards
from sfumato.errors import DataError, InvalidRequest, ModelNotFound
from support.made_data import noise, png

# img2dataset 1.47: NNNNN.tar (.jpg, .txt, .json), NNNNN.parquet, NNNNN_stats.json; finished shards are left alone, and
# the number before "_" of every *.json in the folder must be one
STAND_IN = """#!{python}
import glob, hashlib, io, json, os, sys, tarfile
import duckdb
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
print(sorted(options.items()))
folder = options["output_folder"]
if os.path.exists(folder + "/.broken"):
    sys.exit("RuntimeError: no thread could be started")
rows = []
for path in sorted(glob.glob(options["url_list"] + "/*.parquet")):
    columns = '"' + options["url_col"] + '", "' + options["caption_col"] + '"'
    rows += duckdb.connect().execute("SELECT " + columns + " FROM read_parquet('" + path + "')").fetchall()
size = int(options["number_sample_per_shard"])
done = {{int(path.split("/")[-1].split("_")[0]) for path in glob.glob(folder + "/*.json")}}
picture = open({picture!r}, "rb").read()
errors = {{"dead": "HTTP Error 404: Not Found", "slow": "<urlopen error timed out>", "noai":
    "Use of image disallowed by X-Robots-Tag directive", "page": "Image decoding\\nerror", "odd": "something new"}}
for shard in range(-(-len(rows) // size)):
    if shard in done:
        continue
    if os.path.exists(folder + "/.stop") and shard == 1:
        os.kill(os.getpid(), 9)
    said = {{}}
    with tarfile.open(f"{{folder}}/{{shard:05d}}.tar", "w") as archive:
        for i, (url, text) in enumerate(rows[shard * size : (shard + 1) * size]):
            error = errors.get(url.split("/")[-2])
            said[error or "success"] = said.get(error or "success", 0) + 1
            if error:
                continue
            key = f"{{shard:05d}}{{i:04d}}"
            fields = {{"url": url, "caption": text, "key": key, "sha256": hashlib.sha256(url.encode()).hexdigest()}}
            for suffix, data in (("jpg", picture), ("txt", text.encode()), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(key + "." + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    stats = {{"count": sum(said.values()), "successes": said.get("success", 0), "status_dict": said}}
    open(f"{{folder}}/{{shard:05d}}_stats.json", "w").write(json.dumps(stats))
"""

KINDS = ["good", "dead", "slow", "noai", "page", "odd", "good", "dead"]
OPTIONS = DownloadOptions(samples_per_shard=4, size=64)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "picture.png").write_bytes(png(noise(9, 8, 0)))
    path = tmp_path / "img2dataset"
    path.write_text(STAND_IN.format(python=sys.executable, picture=str(tmp_path / "picture.png")))
    path.chmod(0o755)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ", ".join(f"('http://x/{kind}/{i}', 'picture {i}', {i})" for i, kind in enumerate(KINDS * 2 + ["dead"] * 4))
    duckdb.connect().execute(
        f"COPY (SELECT * FROM (VALUES {rows}) t(URL, TEXT, WIDTH)) TO '{tmp_path}/list.parquet' (FORMAT parquet)"
    )
    return tmp_path / "list.parquet"


def test_the_pictures_are_shards_and_the_failures_are_counted(tmp_path: Path, program: Path, table: Path) -> None:
    report = download([table], tmp_path / "out", program, OPTIONS)
    assert (report.addresses, report.pictures, report.shards, report.unwanted) == (20, 4, 4, 0)
    assert report.errors == {"gone": 8, "timeout": 2, "opted out": 2, "no picture": 2, "other": 2}
    assert report.messages["Image decoding error"] == 2
    shards = open_shards(tmp_path / "out")
    assert [shards.record(i).captions for i in range(4)] == [(f"picture {i}",) for i in (0, 6, 8, 14)]
    assert verify(shards).whole
    said = (tmp_path / "out" / "download.log").read_text()
    for words in ("'noai', 'noimageai', 'noindex'", "('resize_mode', 'keep_ratio')", "('timeout', '10')"):
        assert words.replace("'noai', 'noimageai', 'noindex'", '["noai", "noimageai", "noindex"') in said
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    assert download([table], tmp_path / "out", program, OPTIONS) == report  # it isn't run again: the log stays
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before
    with pytest.raises(InvalidRequest, match="begun with other options"):
        download([table], tmp_path / "out", program, DownloadOptions(honour_opt_outs=False))


def test_killed_it_goes_on_with_the_next_shard(tmp_path: Path, program: Path, table: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".stop").touch()
    with pytest.raises(DataError, match="ended with code -9"):
        download([table], tmp_path / "out", program, OPTIONS)
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
    (tmp_path / "out" / ".stop").unlink()
    assert download([table], tmp_path / "out", program, OPTIONS).pictures == 4
    assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == first


def test_removals_are_not_fetched_and_hashes_are_found_out(tmp_path: Path, program: Path, table: Path) -> None:
    import hashlib

    digest = hashlib.sha256(b"http://x/good/6").hexdigest()
    (tmp_path / "removals.txt").write_text(f"http://x/good/0\nhttp://x/dead/1\n{digest}\n")
    report = download(
        [table],
        tmp_path / "out",
        program,
        OPTIONS,
        removals=tmp_path / "removals.txt",
        unwanted=read_removals(tmp_path / "removals.txt"),
    )
    assert (report.addresses, report.pictures, report.unwanted) == (18, 3, 1)
    shards = open_shards(tmp_path / "out")
    assert [shards.record(i).fields["url"] for i in range(3)] == [f"http://x/good/{i}" for i in (6, 8, 14)]


def test_what_goes_wrong_is_said_in_a_line(tmp_path: Path, program: Path, table: Path) -> None:
    with pytest.raises(ModelNotFound, match="is no program: install img2dataset in an environment of its own"):
        download([table], tmp_path / "out", tmp_path / "nothing", OPTIONS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".broken").touch()
    with pytest.raises(DataError, match=r"ended with code 1 \(RuntimeError: no thread could be started\)"):
        download([table], tmp_path / "out", program, OPTIONS)
    (tmp_path / "out" / ".broken").unlink()
    program.write_text(f"#!{sys.executable}\n")
    with pytest.raises(DataError, match="tried 0 of 20 addresses"):
        download([table], tmp_path / "out", program, OPTIONS)
    (tmp_path / "out" / "00000_stats.json").write_text(json.dumps({"count": "many"}))
    with pytest.raises(DataError, match="not as img2dataset writes it"):
        download([table], tmp_path / "out", program, OPTIONS)
