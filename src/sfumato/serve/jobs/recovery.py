"""What a server does before it serves: the folder is its own, the index agrees with the files, work is taken up."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from sfumato.errors import OutputError
from sfumato.files import make_folder
from sfumato.serve.jobs.job_files import JobFiles
from sfumato.serve.jobs.job_record import Job
from sfumato.serve.jobs.store import BrokenIndex, Store, set_aside
from sfumato.serve.observe.request_log import logger

_INDEX = "index.sqlite3"
_LOCK = "lock"
_PATIENCE = 10.0  # seconds the worker of a server that was killed has to notice


def lock_folder(folder: Path, *, patience: float = _PATIENCE) -> int:
    """Make the folder this process's own, and give the open lock file: a worker that inherits it holds it too.

    The system lets go of it when the last of them has ended. Raises `OutputError` if another server has it.
    """
    make_folder(folder)
    try:
        folder.chmod(0o700)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutputError(f"{folder}: can't be served from ({error.strerror}): choose another folder") from error
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() > give_up:
                os.close(descriptor)
                raise OutputError(f"{folder} is served by another process: stop that one, or choose another") from None
            time.sleep(0.1)


def open_store(folder: Path, files: JobFiles) -> Store:
    """The folder's index, agreeing with the files: made anew where it is damaged or missing.

    Jobs only the files know of are added, finished pictures that weren't recorded are, jobs whose folder is gone are
    forgotten, and what was running waits again.
    """
    path = folder / _INDEX
    try:
        store = Store(path)
    except BrokenIndex as error:
        aside = set_aside(path)
        logger.warning("index made anew from the jobs' files", reason=str(error), kept_as=aside.name)
        store = Store(path)
    known, promised = store.ids(), files.ids()
    for job_id in sorted(promised - known):
        if (job := files.job(job_id)) is not None:
            store.add(job, again=True)
    for job_id in known - promised:
        if (job := store.job(job_id)) is not None:
            store.delete(job)
    for job in store.unfinished():
        _take_up(store, files, job)
    return store


def _take_up(store: Store, files: JobFiles, job: Job) -> None:
    recorded = {picture.number for picture in store.pictures_of_job(job.id)}
    ending = files.ending(job.id)
    for number, request in enumerate(job.requests()):
        if number in recorded or (ending is not None and number not in ending.made):
            continue
        if (picture := files.made(job, number, request)) is not None:
            store.add_picture(job, picture)
    if ending is not None:
        store.end(job, ending)
    elif job.state == "running" and (now := store.job(job.id)) is not None and now.state == "running":
        store.requeue(job)
