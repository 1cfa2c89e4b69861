"""A job's folder, `jobs/<id>`: the promise (`job.json`), its pictures, and how it ended where pictures don't say.

These files are the truth; the index is made again from them when it is lost.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sfumato.errors import InvalidRequest
from sfumato.files import file_sha256, make_folder, remove_leftovers, write_text
from sfumato.pipeline.metadata import read_provenance
from sfumato.pipeline.request import Request
from sfumato.serve.jobs.job_record import Job, MadePicture, picture_id

_ID = re.compile("[a-z0-9]{1,40}")
_PROMISE, _END = "job.json", "end.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ended without all its pictures: in which state, a line for people and a word for programs.

    `made` are the numbers of the pictures it has: one that was all but done when the job ended isn't among them.
    """

    state: Literal["failed", "cancelled"]
    error: str | None = None
    error_code: str | None = None
    made: tuple[int, ...] = ()


class JobFiles:
    """The folders of all jobs below one. Raises `OutputError` where something can't be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "jobs"
        make_folder(self._folder)
        self._folder.chmod(0o700)
        remove_leftovers(self._folder)

    def promise(self, job: Job) -> None:
        """Put a job on disk, so that it is there whatever happens next."""
        folder = self._of(job.id)
        make_folder(folder)
        write_text(folder / _PROMISE, job.to_json(), overwrite=True)

    def end(self, job: Job, ending: Ending) -> None:
        """Put on disk that a job ended without all its pictures."""
        write_text(self._of(job.id) / _END, json.dumps(asdict(ending)), overwrite=True)

    def picture(self, job_id: str, number: int) -> Path:
        """Where a job's picture is, or will be."""
        return self._of(job_id) / f"{number}.png"

    def delete(self, job_id: str) -> None:
        """Delete a job's folder: at once by its name, then what is in it."""
        folder = self._of(job_id)
        doomed = folder.with_name(f".{job_id}.part")
        if folder.exists():
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def ids(self) -> set[str]:
        """The ids of all jobs that are on disk. A folder without a promise is none: nobody was told of it."""
        return {path.parent.name for path in self._folder.glob(f"*/{_PROMISE}") if _ID.fullmatch(path.parent.name)}

    def job(self, job_id: str) -> Job | None:
        """The job as it was promised; None where its file can't be read."""
        try:
            job = Job.from_json((self._of(job_id) / _PROMISE).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, InvalidRequest):
            return None
        return job if job.id == job_id else None

    def ending(self, job_id: str) -> Ending | None:
        """How a job ended, if it did without all its pictures; "failed" where its file is broken."""
        try:
            values = json.loads((self._of(job_id) / _END).read_text(encoding="utf-8"))
            return Ending(
                state="cancelled" if values["state"] == "cancelled" else "failed",
                error=values["error"],
                error_code=values["error_code"],
                made=tuple(values["made"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return Ending(state="failed", error="how it ended can't be read", error_code="lost")

    def made(self, job: Job, number: int, request: Request) -> MadePicture | None:
        """The picture of that number if its file is whole and its own record says it is of that request."""
        path = self.picture(job.id, number)
        try:
            record = read_provenance(path)
        except InvalidRequest:
            return None
        if record is None or not _is_of(record.request, request):
            return None
        return described(path, job, number, seed=request.seed, width=record.width, height=record.height)

    def _of(self, job_id: str) -> Path:
        if not _ID.fullmatch(job_id):
            raise InvalidRequest(f"{job_id!r} is no id of a job", field="id")
        return self._folder / job_id


def described(path: Path, job: Job, number: int, *, seed: int, width: int, height: int) -> MadePicture:
    """What the index says of a finished file. Raises `OSError` where it can't be read."""
    stat = path.stat()
    return MadePicture(
        id=picture_id(job.id, number),
        job_id=job.id,
        number=number,
        created=stat.st_mtime,
        seed=seed,
        width=width,
        height=height,
        sha256=file_sha256(path),
        size=stat.st_size,
    )


def _is_of(made: Request, asked: Request) -> bool:
    """Whether a resolved request is what was asked, with what was left open filled in."""
    filled = made.to_dict()
    return all(filled[name] == value for name, value in asked.to_dict().items() if value is not None)
