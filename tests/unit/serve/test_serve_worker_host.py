"""The front's side of a worker, with a fake one: asked, stopped, and lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sfumato.errors import Cancelled
from sfumato.pipeline.request import Request
from sfumato.serve.workers.messages import Message, Unit
from sfumato.serve.workers.worker_host import UnitFailed, WorkerHost, WorkerLost
from support.serving import FAKE


def with_host(use: Callable[[WorkerHost], Awaitable[None]], *, seconds: float = 0.0) -> int:
    """Run `use` with a worker; how many were started."""
    started = 0

    def count() -> None:
        nonlocal started
        started += 1

    async def run() -> None:
        host = WorkerHost([*FAKE, str(seconds)], started=count)
        try:
            await use(host)
        finally:
            await host.stop()

    asyncio.run(run())
    return started


def unit(folder: Path, prompt: str = "a red heart", *, steps: int = 2) -> Unit:
    return Unit(name=prompt, request=Request(prompt=prompt, steps=steps), path=folder / f"{prompt}.png")


def test_one_worker_makes_picture_after_picture_and_tells_of_it(tmp_path: Path):
    told: list[Message] = []

    async def use(host: WorkerHost) -> None:
        for prompt in ("one", "two"):
            assert await host.generate(unit(tmp_path, prompt, steps=30), told.append) == (8, 8)
            assert (tmp_path / f"{prompt}.png").exists()

    assert with_host(use, seconds=0.02) == 1
    kinds = [message["is"] for message in told]
    assert {"progress", "preview"} <= set(kinds)
    assert kinds.count("progress") <= 2 * 4  # of thirty steps each: not more often than anybody can see


def test_cancelled_before_the_worker_is_there(tmp_path: Path):
    async def use(host: WorkerHost) -> None:
        asked = asyncio.ensure_future(host.generate(unit(tmp_path), lambda _: None))
        await asyncio.sleep(0)
        await host.cancel("a red heart")
        with pytest.raises(Cancelled):
            await asked
        await host.generate(unit(tmp_path, "the next"), lambda _: None)
        assert not (tmp_path / "a red heart.png").exists()

    assert with_host(use) == 1


def test_cancelled_on_the_way(tmp_path: Path):
    async def use(host: WorkerHost) -> None:
        steps: list[int] = []
        begun = asyncio.Event()

        def on_message(message: Message) -> None:
            begun.set()
            steps.append(message.get("step", 0))

        asked = asyncio.ensure_future(host.generate(unit(tmp_path, steps=1000), on_message))
        await begun.wait()
        await host.cancel("a red heart")
        with pytest.raises(Cancelled):
            await asked
        assert max(steps) < 1000

    assert with_host(use, seconds=0.01) == 1


def test_a_failure_is_told_and_the_worker_stays(tmp_path: Path):
    async def use(host: WorkerHost) -> None:
        with pytest.raises(UnitFailed, match="NaN in the layer"):
            await host.generate(unit(tmp_path, "make the picture fail"), lambda _: None)
        await host.generate(unit(tmp_path), lambda _: None)

    assert with_host(use) == 1


def test_a_worker_that_dies_is_told_and_another_one_started(tmp_path: Path):
    async def use(host: WorkerHost) -> None:
        with pytest.raises(WorkerLost, match="exit code 9"):
            await host.generate(unit(tmp_path, "make the worker crash"), lambda _: None)
        await host.generate(unit(tmp_path), lambda _: None)

    assert with_host(use) == 2


def test_a_worker_that_cannot_be_started_is_not_there(tmp_path: Path):
    async def run() -> None:
        host = WorkerHost([str(tmp_path / "nothing"), "{socket}"], started=lambda: None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(host.start(), 0.5)
        assert not host.is_ready
        await host.stop()

    asyncio.run(run())
