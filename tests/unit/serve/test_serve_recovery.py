"""What a server finds when it starts: jobs half done, an index that is gone, files that are broken."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sfumato.errors import OutputError
from sfumato.serve.jobs import store as store_module
from sfumato.serve.jobs.job_files import JobFiles
from sfumato.serve.jobs.recovery import lock_folder, open_store
from sfumato.serve.jobs.schema import metadata
from sfumato.serve.jobs.store import Store
from support.serving import served

INDEX = "index.sqlite3"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished job of two pictures, a failed one and a cancelled one."""
    folder = tmp_path_factory.mktemp("made")
    with served(folder, seconds=0.01) as client:
        client.ended(client.submit("finished", count=2)["id"])
        client.ended(client.submit("make the picture fail")["id"])
        cancelled = client.submit("cancelled", count=50)
        client.post(f"/api/jobs/{cancelled['id']}/cancel")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "served"))


def seen(folder: Path) -> list[dict[str, object]]:
    """All jobs as a caller sees them, but for the times that only the index has."""
    with served(folder) as client:
        jobs = [client.get(f"/api/jobs/{job['id']}").json() for job in client.get("/api/jobs").json()["jobs"]]
        for job in jobs:
            for picture in job["pictures"]:
                assert client.get(picture["url"]).status_code == 200
    return [{name: value for name, value in job.items() if name not in ("started", "ended")} for job in jobs]


def damage_page(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[4096 : 3 * 4096] = b"\xa5" * 8192
    index.write_bytes(data)


def truncate(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:5000])


def overwrite_header(index: Path) -> None:
    index.write_bytes(b"this is no database" + index.read_bytes()[19:])


@pytest.mark.parametrize("harm", [damage_page, truncate, overwrite_header, Path.unlink])
def test_a_broken_index_is_made_again_from_the_jobs_themselves(folder: Path, harm):
    before = seen(folder)
    assert {job["state"] for job in before} == {"finished", "failed", "cancelled"}
    broken = (folder / INDEX).exists() and harm is not Path.unlink
    for ending in ("-wal", "-shm"):
        folder.joinpath(INDEX + ending).unlink(missing_ok=True)
    harm(folder / INDEX)
    assert seen(folder) == before
    assert len(list(folder.glob("index.damaged-*.sqlite3"))) == (1 if broken else 0)


def test_an_index_of_a_newer_program_is_left_alone(folder: Path):
    with sqlite3.connect(folder / INDEX) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = (folder / INDEX).read_bytes()
    with pytest.raises(OutputError, match="newer"):
        open_store(folder, JobFiles(folder))
    assert (folder / INDEX).read_bytes() == before


def test_an_index_that_another_program_holds_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "_PRAGMAS", ("busy_timeout=10",))
    with sqlite3.connect(folder / INDEX) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputError, match="locked"):
            open_store(folder, JobFiles(folder))
    assert not list(folder.glob("*damaged*"))


def test_migrations_make_the_tables_that_the_program_uses(tmp_path: Path):
    Store(tmp_path / INDEX).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / INDEX}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_picture_that_was_made_and_not_recorded_is_taken_as_it_is(folder: Path):
    """Between the file and the index: the file is whole, and its own record says what it is."""
    with sqlite3.connect(folder / INDEX) as connection:
        connection.execute("DELETE FROM pictures WHERE number = 1")
        connection.execute("UPDATE jobs SET state = 'running' WHERE state = 'finished'")
    store = open_store(folder, JobFiles(folder))
    assert store.unfinished() == []
    assert [event.kind for event in store.events_after("local", 0)][-2:] == ["picture", "finished"]
    store.close()


@pytest.mark.parametrize("bytes_left", [0, 100])
def test_a_picture_that_is_not_whole_or_of_another_request_is_made_again(folder: Path, bytes_left: int):
    with sqlite3.connect(folder / INDEX) as connection:
        connection.execute("DELETE FROM pictures")
        connection.execute("UPDATE jobs SET state = 'running' WHERE state = 'finished'")
        (job_id,) = connection.execute("SELECT id FROM jobs WHERE state = 'running'").fetchone()
    first, second = (folder / "jobs" / job_id / f"{number}.png" for number in (0, 1))
    whole = {path: path.read_bytes() for path in (first, second)}
    first.write_bytes(whole[first][:bytes_left])
    second.write_bytes(whole[first])  # whole, but the other's
    with served(folder) as client:
        assert client.ended(job_id)["state"] == "finished"
    assert {path: path.read_bytes() for path in (first, second)} == whole


def test_what_was_deleted_stays_deleted_and_half_a_promise_is_none(folder: Path):
    with served(folder) as client:
        job = client.get("/api/jobs").json()["jobs"][0]
        shutil.rmtree(folder / "jobs" / job["id"])  # a crash between the folder and the index
        (folder / "jobs" / "halfmade").mkdir()
        (folder / "jobs" / "broken").mkdir()
        (folder / "jobs" / "broken" / "job.json").write_text('{"version": 1, "id"')
    with served(folder) as client:
        assert client.get(f"/api/jobs/{job['id']}").status_code == 404
        assert len(client.get("/api/jobs").json()["jobs"]) == 2


def test_the_folder_is_one_servers_own(tmp_path: Path):
    import os

    held = lock_folder(tmp_path / "served")
    with pytest.raises(OutputError, match="served by another process"):
        lock_folder(tmp_path / "served", patience=0.0)
    os.close(held)
    os.close(lock_folder(tmp_path / "served", patience=0.0))


def test_what_is_kept_is_for_its_owner_only(folder: Path):
    assert (folder / "jobs").stat().st_mode & 0o077 == 0
