"""What the front and the worker say to each other: a JSON object a line, over a socket the worker inherits.

    front → worker   {"do": "generate", "unit": "…", "request": {…}, "path": "…"}   {"do": "cancel", "unit": "…"}
    worker → front   {"is": "ready"}   {"is": "alive"}, each second of work
                     {"is": "progress", "unit": "…", "step": 3, "steps": 50}
                     {"is": "preview", "unit": "…", "webp": "…"}
                     {"is": "done", "unit": "…", "width": 64, "height": 64}   {"is": "cancelled", "unit": "…"}
                     {"is": "failed", "unit": "…", "code": "…", "error": "…"}

Pictures pass as files: "done" is said when the whole file has its name. When the socket closes, the worker ends.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.errors import Cancelled, SfumatoError
from sfumato.pipeline.request import Request
from sfumato.progress import Cancellation

Message = dict[str, Any]

MAX_LINE = 256 * 1024
MAX_PREVIEW = 12 * 1024  # bytes of WebP
ALIVE_EVERY = 1.0  # seconds
_TOLD_EVERY = 0.25  # seconds between two lines of progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One picture to be made, and the file it is to become."""

    name: str
    request: Request
    path: Path


class Telling:
    """How a worker tells how far a picture is: not more often than anybody can see."""

    def __init__(self, unit: str, send: Callable[[Message], None]) -> None:
        self._unit = unit
        self._send = send
        self._last = -_TOLD_EVERY

    def step(self, step: int, steps: int, preview: Callable[[], Image.Image] | None = None) -> None:
        """Say that `step` of `steps` are done, with a small picture of the state."""
        if time.monotonic() - self._last < _TOLD_EVERY:
            return
        self._last = time.monotonic()
        self._send({"is": "progress", "unit": self._unit, "step": step, "steps": steps})
        if preview is not None:
            encoded = encoded_preview(preview())
            self._send({"is": "preview", "unit": self._unit, "webp": base64.b64encode(encoded).decode()})


def encoded_preview(picture: Image.Image) -> bytes:
    """A small picture as WebP of at most `MAX_PREVIEW` bytes."""
    for side in (128, 96, 64):
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=70)
        if buffer.tell() <= MAX_PREVIEW:
            break
    return buffer.getvalue()


Generate = Callable[[Unit, Telling, Cancellation], tuple[int, int]]
"""Makes a unit's picture, writes its file whole, and gives its width and height. Raises `Cancelled`, and others."""


def work(descriptor: int, generate: Generate) -> None:
    """Be a worker on that socket until it closes; then this process ends at once, whatever it was about.

    One picture is made at a time, in the calling thread.
    """
    channel = socket.socket(fileno=descriptor)
    lines = channel.makefile("r", encoding="utf-8")
    sending, arrived = threading.Lock(), threading.Condition()
    asked: list[Unit] = []
    running: dict[str, Cancellation] = {}

    def send(message: Message) -> None:
        with sending:
            channel.sendall(json.dumps(message).encode() + b"\n")

    def read() -> None:
        try:
            for line in lines:
                message = json.loads(line)
                if message["do"] == "cancel":
                    if (known := running.get(message["unit"])) is not None:
                        known.cancel()
                else:
                    unit = Unit(
                        name=message["unit"],
                        request=Request.from_dict(message["request"]),
                        path=Path(message["path"]),
                    )
                    with arrived:
                        running[unit.name] = Cancellation()
                        asked.append(unit)
                        arrived.notify()
        finally:
            os._exit(0)  # nobody is left to work for, and files are written whole or not at all

    def beat() -> None:
        while True:
            time.sleep(ALIVE_EVERY)
            if running:
                send({"is": "alive"})

    for body in (read, beat):
        threading.Thread(target=body, daemon=True).start()
    send({"is": "ready"})
    while True:
        with arrived:
            arrived.wait_for(lambda: asked)
            unit = asked.pop(0)
        send({"unit": unit.name, **_outcome(unit, generate, Telling(unit.name, send), running[unit.name])})
        del running[unit.name]


def _outcome(unit: Unit, generate: Generate, telling: Telling, cancellation: Cancellation) -> Message:
    try:
        cancellation.check()
        width, height = generate(unit, telling, cancellation)
    except Cancelled:
        return {"is": "cancelled"}
    except SfumatoError as error:
        return {"is": "failed", "code": type(error).__name__, "error": str(error)}
    except Exception as error:
        traceback.print_exc()  # for whoever runs the server; who asked is told no more than that
        return {"is": "failed", "code": "unexpected", "error": f"something unexpected: {type(error).__name__}"}
    return {"is": "done", "width": width, "height": height}
