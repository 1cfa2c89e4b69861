"""One server: its folder, its socket, its worker, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from sfumato.errors import InvalidConfig
from sfumato.serve.app import guarded, make_api
from sfumato.serve.jobs.dispatch import Dispatcher
from sfumato.serve.jobs.job_desk import JobDesk
from sfumato.serve.jobs.job_files import JobFiles
from sfumato.serve.jobs.recovery import lock_folder, open_store
from sfumato.serve.observe.request_log import logger, set_up_logs
from sfumato.serve.observe.server_metrics import ServerMetrics
from sfumato.serve.server_settings import ServerSettings
from sfumato.serve.workers.worker_host import WorkerHost

_BACKLOG = 2048  # connections that wait for an answer
_TOGETHER = 5  # seconds that open connections have once the jobs are safe


def serve(settings: ServerSettings, worker: Sequence[str], *, on_address: Callable[[str], None]) -> None:
    """Serve until a signal says to stop. `worker` is the command of the worker, `{socket}` where its socket's number
    belongs; `on_address` is told the address once it can be asked.

    Raises `OutputError` where the folder is another server's or can't be written, `InvalidConfig` where the port is
    taken.
    """
    set_up_logs()
    listener = _listening(settings.host, settings.port)
    folder = Path(settings.folder)
    lock = lock_folder(folder)
    files = JobFiles(folder)
    store = open_store(folder, files)
    metrics = ServerMetrics()
    desk = JobDesk(settings, store, files, metrics)
    dispatcher = Dispatcher(desk, WorkerHost(worker, inherited=[lock], started=metrics.workers.inc))
    config = uvicorn.Config(
        guarded(make_api(desk, dispatcher), desk),
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_TOGETHER,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    on_address(f"http://{host}:{listener.getsockname()[1]}")
    try:
        _Server(config, desk, dispatcher).run(sockets=[listener])
    finally:
        os.close(lock)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections already, so that whoever is told the address can ask at once.

    Raises `InvalidConfig` where the address can't be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Named, the protocol tells asyncio to send answers at once: else each waits 40 ms for the client's word.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise InvalidConfig(f"can't listen on {host}, port {port} ({error.strerror}): choose another --port") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, that brings the jobs to rest and ends the event streams before it waits for connections."""

    def __init__(self, config: uvicorn.Config, desk: JobDesk, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._desk = desk
        self._dispatcher = dispatcher
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # uvicorn would raise them again, and the exit code be a failure's

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._desk.is_draining:
            os._exit(1)  # asked twice: what is on disk is whole, and what isn't is made again
        self._desk.is_draining = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        logger.info("stopping")
        self._desk.bus.close()
        await self._dispatcher.drain()
        self.should_exit = True
