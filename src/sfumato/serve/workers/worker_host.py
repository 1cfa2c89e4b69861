"""The front's side of a worker: starts the process, asks it for pictures, and starts another when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence

from sfumato.errors import Cancelled, SfumatoError
from sfumato.serve.observe.request_log import logger
from sfumato.serve.workers.messages import MAX_LINE, Message, Unit

PATIENCE = 30.0  # seconds without a word, or from "cancel" to having stopped, before a worker is killed
_PARTING = 1.0  # seconds a worker has to end by itself
_LONGEST_PAUSE = 60.0  # seconds before a worker that keeps dying is started again

OnMessage = Callable[[Message], None]


class WorkerLost(SfumatoError):
    """The worker ended in the middle of a picture; the message says how."""


class UnitFailed(SfumatoError):
    """The worker says the picture can't be made. `code` is its error's name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerHost:
    """One worker process, restarted as often as needed.

    `command` is started with the number of its socket put in the place of `{socket}`; `inherited` are descriptors it
    gets beside (the folder's lock: while a worker lives, no other server may have the folder).
    """

    def __init__(self, command: Sequence[str], *, inherited: Sequence[int] = (), started: Callable[[], None]) -> None:
        self._command = tuple(command)
        self._inherited = tuple(inherited)
        self._started = started
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready = False
        self._deaths = 0  # in a row, without a finished picture
        self._cancelled: tuple[str, float] | None = None
        """The unit that was, and when."""

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker, and it has said so."""
        return self._ready

    async def start(self) -> None:
        """See to it that there is a worker. One that keeps dying is started after 1, 2, 4 … 60 seconds."""
        if self._reader is not None and self._reader.at_eof():  # it died while it had nothing to do
            await self._bury()
        while not self._ready:
            if self._deaths > 1:
                await asyncio.sleep(min(2.0 ** (self._deaths - 2), _LONGEST_PAUSE))
            try:
                await self._start()
            except (OSError, WorkerLost) as error:
                logger.error("worker didn't start", reason=str(error))
                await self._bury()

    async def generate(self, unit: Unit, on_message: OnMessage) -> tuple[int, int]:
        """Have a picture made; its width and height. What is told on the way goes to `on_message`.

        Raises `UnitFailed`, `WorkerLost`, or `Cancelled` after `cancel`.
        """
        await self.start()
        if self._was_cancelled(unit.name):  # while the worker was started
            raise Cancelled("cancelled")
        self._cancelled = None
        try:
            await self._send(
                {"do": "generate", "unit": unit.name, "request": unit.request.to_dict(), "path": str(unit.path)}
            )
            while True:
                message = await self._receive()
                if message.get("unit") != unit.name:
                    continue
                if message["is"] == "done":
                    self._deaths = 0
                    return message["width"], message["height"]
                if message["is"] == "failed":
                    raise UnitFailed(message["code"], message["error"])
                if message["is"] == "cancelled":
                    raise Cancelled("cancelled")
                on_message(message)
        except (WorkerLost, OSError) as error:
            reason = await self._bury()
            if self._was_cancelled(unit.name):
                raise Cancelled("cancelled") from error
            raise WorkerLost(f"the worker ended in the middle of the picture ({error}, {reason})") from error
        except asyncio.CancelledError:
            await self._bury()
            raise

    async def cancel(self, unit_name: str) -> None:
        """Ask for the picture under way to be given up. A worker that doesn't within `PATIENCE` is killed."""
        self._cancelled = unit_name, time.monotonic()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._send({"do": "cancel", "unit": unit_name})

    def _was_cancelled(self, unit_name: str) -> bool:
        return self._cancelled is not None and self._cancelled[0] == unit_name

    async def stop(self) -> None:
        """End the worker. It loses nothing: its files are whole or not there."""
        await self._bury()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        number = str(theirs.fileno())
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(part.replace("{socket}", number) for part in self._command),
                pass_fds=(theirs.fileno(), *self._inherited),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                start_new_session=True,  # Ctrl-C is the front's to deal with
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        self._started()
        while (await self._receive(patience=10 * PATIENCE))["is"] != "ready":
            pass
        self._ready = True

    async def _send(self, message: Message) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")
        await self._writer.drain()

    async def _receive(self, *, patience: float = PATIENCE) -> Message:
        assert self._reader is not None
        try:
            line = await asyncio.wait_for(self._reader.readline(), patience)
            message: Message = json.loads(line) if line else {}
        except TimeoutError:
            raise WorkerLost("it said nothing any more") from None
        except ValueError as error:
            raise WorkerLost(f"it said something that can't be read: {error}") from error
        if not message:
            raise WorkerLost("it ended")
        if self._cancelled is not None and time.monotonic() - self._cancelled[1] > PATIENCE:
            raise WorkerLost("it didn't stop")
        return message

    async def _bury(self) -> str:
        """End what is left of the process; how it ended, in words."""
        process, writer = self._process, self._writer
        self._process = self._reader = self._writer = None
        self._ready = False
        self._deaths += 1
        if writer is not None:
            writer.close()
        if process is None:
            return "it didn't start"
        try:  # it has died, or ends because its socket did
            code = await asyncio.wait_for(process.wait(), _PARTING)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
        return f"exit code {code}" if code >= 0 else f"signal {-code}"
