"""The index of jobs, pictures and events: SQLite, each change with its event in one transaction, on disk before it is
told. What it says can be made again from the files (`recovery`); whoever changes something does so through here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import DatabaseError, OperationalError

from sfumato.errors import OutputError, SfumatoError
from sfumato.pipeline.request import Request
from sfumato.serve.jobs.job_files import Ending
from sfumato.serve.jobs.job_record import Event, Job, Kind, MadePicture, State
from sfumato.serve.jobs.schema import events, jobs, pictures

_MIGRATIONS = Path(__file__).parent / "migrations"
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=5000",
    "secure_delete=ON",
)
# Codes of SQLite's that say something about the disk or another program, and nothing against the file.
_NOT_THE_FILES_FAULT = tuple(
    f"SQLITE_{name}" for name in ("READONLY", "CANTOPEN", "FULL", "IOERR", "BUSY", "LOCKED", "PERM", "NOMEM")
)


class BrokenIndex(SfumatoError):
    """The index is damaged. The jobs themselves are in their folders."""


class Store:
    """The index in one file. Its methods block: a server calls those that write from one thread.

    `tell`, once set, is called with the events of each change, after the commit and in their order, in the thread that
    wrote.
    Raises `BrokenIndex` for a damaged file, `OutputError` for one that a newer program made or that can't be used now.
    """

    def __init__(self, path: Path) -> None:
        self.tell: Callable[[Sequence[Event]], None] = lambda events: None
        self._engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self._engine, "connect", _set_up)
        try:
            with self._engine.begin() as connection:
                if connection.exec_driver_sql("PRAGMA quick_check").scalar() != "ok":
                    raise BrokenIndex(f"{path} is damaged")
                _migrate(connection)
        except CommandError as error:
            self.close()
            raise OutputError(
                f"{path} was made by a newer sfumato: update this one, or serve another folder"
            ) from error
        except DatabaseError as error:
            self.close()
            if getattr(error.orig, "sqlite_errorname", "").startswith(_NOT_THE_FILES_FAULT):
                raise OutputError(
                    f"{path} can't be used ({error.orig}): make room for it, or serve elsewhere"
                ) from error
            raise BrokenIndex(f"{path} is damaged: {error.orig}") from error
        except BrokenIndex:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    # Changes

    def add(self, job: Job, **told: Any) -> None:
        """Record a new job and its `queued` event with what is `told`. A key that has run out makes way."""
        with self._change() as (connection, note):
            if job.idempotency_key is not None:
                connection.execute(
                    jobs.update()
                    .where(jobs.c.caller == job.caller, jobs.c.idempotency_key == job.idempotency_key)
                    .values(idempotency_key=None)
                )
            connection.execute(jobs.insert().values(**_job_row(job)))
            note("queued", job, **told)

    def start(self, job: Job) -> bool:
        """Record that a job runs, if it waited. False if it has ended."""
        with self._change() as (connection, note):
            state = _state(connection, job)
            if state == "queued":
                running = {"state": "running", "started": time.time()}
                connection.execute(jobs.update().where(jobs.c.id == job.id).values(**running))
                note("started", job)
            return state in ("queued", "running")

    def requeue(self, job: Job) -> None:
        """Record that a job which was running waits again, since the server has started anew."""
        with self._change() as (connection, note):
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(state="queued"))
            note("queued", job, again=True)

    def add_picture(self, job: Job, picture: MadePicture) -> bool:
        """Record a picture, and the job's end with its last one. False if the job has ended meanwhile."""
        with self._change() as (connection, note):
            if _state(connection, job) not in ("queued", "running"):
                return False
            connection.execute(pictures.insert().values(**picture_row(picture)))
            note("picture", job, **picture_row(picture))
            made = sa.select(sa.func.count()).where(pictures.c.job_id == job.id)
            if connection.scalar(made) == job.count:
                connection.execute(jobs.update().where(jobs.c.id == job.id).values(state="finished", ended=time.time()))
                note("finished", job)
            return True

    def end(self, job: Job, ending: Ending) -> Job:
        """Record how a job ended, unless it has ended already; the job as it is now."""
        why = {"error": ending.error, "error_code": ending.error_code}
        with self._change() as (connection, note):
            ended = connection.execute(
                jobs.update()
                .where(jobs.c.id == job.id, jobs.c.state.in_(("queued", "running")))
                .values(state=ending.state, ended=time.time(), **why)
            )
            if ended.rowcount:
                note(ending.state, job, **why)
        found = self.job(job.id)
        assert found is not None
        return found

    def delete(self, job: Job) -> None:
        """Forget a job, its pictures and what was told of it."""
        with self._change() as (connection, note):
            connection.execute(events.delete().where(events.c.job_id == job.id))
            connection.execute(jobs.delete().where(jobs.c.id == job.id))
            note("deleted", job)

    def forget_events(self, before: float) -> None:
        """Delete the events that are older than this time."""
        with self._engine.begin() as connection:
            connection.execute(events.delete().where(events.c.at < before))

    # Questions

    def job(self, job_id: str) -> Job | None:
        """The job of that id."""
        return next(iter(self._jobs(sa.select(jobs).where(jobs.c.id == job_id))), None)

    def job_with_key(self, caller: str, key: str, since: float) -> Job | None:
        """The job a caller made with that idempotency key, since that time."""
        ours = (jobs.c.caller == caller, jobs.c.idempotency_key == key, jobs.c.created >= since)
        return next(iter(self._jobs(sa.select(jobs).where(*ours))), None)

    def jobs_of(self, caller: str, *, state: State | None, before: str | None, limit: int) -> list[Job]:
        """A caller's jobs, newest first, those before the job of the id `before`."""
        query = sa.select(jobs).where(jobs.c.caller == caller).order_by(jobs.c.id.desc()).limit(limit)
        if state is not None:
            query = query.where(jobs.c.state == state)
        return self._jobs(query if before is None else query.where(jobs.c.id < before))

    def unfinished(self) -> list[Job]:
        """All jobs that haven't ended, oldest first."""
        return self._jobs(sa.select(jobs).where(jobs.c.state.in_(("queued", "running"))).order_by(jobs.c.id))

    def ids(self) -> set[str]:
        """The ids of all jobs."""
        with self._engine.connect() as connection:
            return set(connection.scalars(sa.select(jobs.c.id)))

    def pictures_of_job(self, job_id: str) -> list[MadePicture]:
        """The pictures of a job, in their order."""
        return self._pictures(sa.select(pictures).where(pictures.c.job_id == job_id).order_by(pictures.c.number))

    def pictures_of(self, caller: str, *, before: str | None, limit: int) -> list[MadePicture]:
        """A caller's pictures, the newest job's first, those behind the picture of the id `before`."""
        order = (pictures.c.job_id.desc(), pictures.c.number.desc())
        query = sa.select(pictures).join(jobs).where(jobs.c.caller == caller).order_by(*order).limit(limit)
        if before is not None:
            job_id, _, number = before.partition("_")
            query = query.where(
                sa.tuple_(pictures.c.job_id, pictures.c.number) < sa.tuple_(sa.literal(job_id), sa.literal(int(number)))
            )
        return self._pictures(query)

    def picture(self, caller: str, picture: str) -> MadePicture | None:
        """The picture of that id, if it is this caller's."""
        query = sa.select(pictures).join(jobs).where(pictures.c.id == picture, jobs.c.caller == caller)
        return next(iter(self._pictures(query)), None)

    def events_after(self, caller: str, after: int, *, job_id: str | None = None, limit: int = 1000) -> list[Event]:
        """The first `limit` events that were told to a caller (of one job) after the event of that id, in order."""
        query = (
            sa.select(events).where(events.c.caller == caller, events.c.id > after).order_by(events.c.id).limit(limit)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query if job_id is None else query.where(events.c.job_id == job_id)).mappings()
            return [
                Event(
                    id=row["id"],
                    kind=row["kind"],
                    caller=row["caller"],
                    job_id=row["job_id"],
                    data=json.loads(row["data"]),
                )
                for row in rows
            ]

    def event_range(self) -> tuple[int, int]:
        """The last id before the oldest event that is kept, and the last id given so far."""
        with self._engine.connect() as connection:
            last = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name='events'").scalar() or 0
            oldest = connection.scalar(sa.select(sa.func.min(events.c.id)))
            return (last if oldest is None else oldest - 1), last

    @contextmanager
    def _change(self) -> Iterator[tuple[Connection, Callable[..., None]]]:
        """A transaction, and what notes an event in it; the events are told once they are on disk."""
        noted: list[Event] = []
        try:
            with self._engine.begin() as connection:

                def note(kind: Kind, job: Job, **data: Any) -> None:
                    row = {"at": time.time(), "caller": job.caller, "job_id": job.id, "kind": kind}
                    done = connection.execute(events.insert().values(**row, data=json.dumps(data)))
                    assert done.inserted_primary_key is not None
                    identity = done.inserted_primary_key[0]
                    noted.append(Event(id=identity, kind=kind, caller=job.caller, job_id=job.id, data=data))

                yield connection, note
        except OperationalError as error:
            raise OutputError(f"the index of jobs can't be written: {error.orig}") from error
        self.tell(noted)

    def _jobs(self, query: sa.Select[Any]) -> list[Job]:
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def _pictures(self, query: sa.Select[Any]) -> list[MadePicture]:
        with self._engine.connect() as connection:
            return [MadePicture(**row) for row in connection.execute(query).mappings()]


def _state(connection: Connection, job: Job) -> str | None:
    return connection.scalar(sa.select(jobs.c.state).where(jobs.c.id == job.id))


def picture_row(picture: MadePicture) -> dict[str, Any]:
    """The picture as plain values."""
    return {name: getattr(picture, name) for name in MadePicture.__dataclass_fields__}


def _job_row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for name in Job.__dataclass_fields__}
    return row | {"request": job.request.to_json()}


def _job(row: RowMapping) -> Job:
    return Job(**(dict(row) | {"request": Request.from_json(row["request"])}))


def _set_up(connection: Any, _: Any) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def set_aside(path: Path) -> Path:
    """Give a damaged index another name, its log too, so that a new one can be made; the new name."""
    aside = path.with_name(f"{path.stem}.damaged-{time.time_ns()}{path.suffix}")
    for ending in ("", "-wal", "-shm"):
        file = path.with_name(path.name + ending)
        if file.exists():
            file.rename(aside.with_name(aside.name + ending))
    return aside
