"""Telling those who listen what happens, without letting a slow one hold up anybody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from sfumato.serve.jobs.job_record import Event

MAX_BEHIND = 256
"""Kept events a listener may be behind; one that is further behind is let go, and resumes by the last id it saw."""


class Subscriber:
    """One listener's mailbox: kept events in order, of the others the latest of each kind and job."""

    def __init__(self, caller: str, job_id: str | None) -> None:
        self._caller = caller
        self._job_id = job_id
        self._kept: deque[Event] = deque()
        self._latest: dict[tuple[str, str], Event] = {}
        self._news = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """Take an event in, if it is for this listener."""
        if self._closed or event.caller != self._caller or self._job_id not in (None, event.job_id):
            return
        if event.id is None:
            self._latest[event.kind, event.job_id] = event
        elif len(self._kept) >= MAX_BEHIND:
            self.close()
        else:
            self._kept.append(event)
        self._news.set()

    def close(self) -> None:
        """End the listening; what was put before is still given out."""
        self._closed = True
        self._news.set()

    async def listen(self, *, quiet: float) -> AsyncIterator[Event | None]:
        """Events as they come, None after `quiet` seconds without any; ends when the bus closes or the listener fell
        too far behind."""
        while True:
            while self._kept or self._latest:
                yield self._kept.popleft() if self._kept else self._latest.pop(next(iter(self._latest)))
            if self._closed:
                return
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), quiet)
            except TimeoutError:
                yield None


class EventBus:
    """All listeners of one server. Its methods are called on the event loop's thread."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._subscribers)

    @contextmanager
    def subscribed(self, caller: str, job_id: str | None = None) -> Iterator[Subscriber]:
        """A mailbox for a caller's events (of one job), open during the block."""
        subscriber = Subscriber(caller, job_id)
        self._subscribers.add(subscriber)
        if self.closed:
            subscriber.close()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def publish(self, events: Iterable[Event]) -> None:
        """Give events to all they are for."""
        for event in events:
            for subscriber in self._subscribers:
                subscriber.put(event)

    def close(self) -> None:
        """End all listening, now and later."""
        self.closed = True
        for subscriber in self._subscribers:
            subscriber.close()
