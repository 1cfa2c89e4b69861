"""Servers for tests: one in this process without sockets, and real ones that can be killed."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx2
from starlette.testclient import TestClient

from sfumato.serve.app import guarded, make_api
from sfumato.serve.jobs.dispatch import Dispatcher
from sfumato.serve.jobs.job_desk import JobDesk
from sfumato.serve.jobs.job_files import JobFiles
from sfumato.serve.jobs.recovery import open_store
from sfumato.serve.observe.server_metrics import ServerMetrics
from sfumato.serve.server_settings import ServerSettings
from sfumato.serve.workers.worker_host import WorkerHost

FAKE = (sys.executable, "-m", "sfumato.serve.workers.fake_worker", "{socket}")


class Served(TestClient):
    """A client of a server in this process, and that server's parts."""

    def __init__(self, settings: ServerSettings, *, seconds: float = 0.0) -> None:
        folder = Path(settings.folder)
        folder.mkdir(exist_ok=True, parents=True)
        files = JobFiles(folder)
        self.desk = JobDesk(settings, open_store(folder, files), files, ServerMetrics())
        self.host = WorkerHost([*FAKE, str(seconds)], started=lambda: None)
        self.api = make_api(self.desk, Dispatcher(self.desk, self.host))
        super().__init__(guarded(self.api, self.desk), base_url="http://localhost")

    def submit(self, prompt: str = "a red heart", **body: Any) -> dict[str, Any]:
        """Hand in a job of few steps; the job as it was accepted."""
        request = {"prompt": prompt, "steps": 2} | body.pop("request", {})
        reply = self.post("/api/jobs", json={"request": request, **body})
        assert reply.status_code == 202, reply.text
        return dict(reply.json())

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job, once it has ended."""
        while True:
            job = self.get(f"/api/jobs/{job_id}").json()
            if job["state"] not in ("queued", "running"):
                return dict(job)


@contextmanager
def served(folder: Path, *, seconds: float = 0.0, **settings: Any) -> Iterator[Served]:
    """A server in this process, at work during the block."""
    with Served(ServerSettings(folder=str(folder), **settings), seconds=seconds) as client:
        yield client


class ServerProcess:
    """`sfumato serve` in a process of its own; its worker is a fake one of so many seconds a step, or the real one."""

    running: ClassVar[list[ServerProcess]] = []
    """All that were started and not killed, for the end of a test that failed."""

    def __init__(self, folder: Path, *, seconds: float | None, options: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "sfumato.cli.entry", "serve", "--port", "0", "--folder", str(folder)]
        fake = () if seconds is None else ("--fake", str(seconds))
        log = folder.parent / "server.log"
        with log.open("ab") as said_to_people:
            self.process = subprocess.Popen(
                [*command, *fake, *options], stdout=subprocess.PIPE, stderr=said_to_people, text=True
            )
        atexit.register(self.process.kill)  # where a test that fails leaves it
        assert self.process.stdout is not None
        with self.process.stdout as results:
            said = results.readline()
        assert said.startswith("serving on "), (said, log.read_text())
        self.running.append(self)
        self.client = httpx2.Client(base_url=said.split()[-1], timeout=30)

    def worker(self) -> int | None:
        """The worker's process id, if there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def kill(self) -> None:
        """End it as a power cut would, but for the worker, which notices."""
        self.process.kill()
        self.process.wait()
        self.client.close()
        self.running.remove(self)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.kill()
        return code

    def kill_worker(self) -> None:
        """End the worker as the system does when memory runs out."""
        worker = self.worker()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)


@contextmanager
def server_process(
    folder: Path, *, seconds: float | None = 0.0, options: tuple[str, ...] = ()
) -> Iterator[ServerProcess]:
    """A real server during the block."""
    server = ServerProcess(folder, seconds=seconds, options=options)
    try:
        yield server
    finally:
        if server in ServerProcess.running:
            server.kill()


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Kind, id and data of each server-sent event in the lines of a reply."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line and "data" in fields:
            identity = int(fields["id"]) if "id" in fields else None
            yield fields["event"], identity, json.loads(fields["data"])
        if not line:
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
