"""Processes of this machine that share work: where one thread can't feed the device."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

from sfumato.errors import PeerGone


@contextmanager
def process_pool(count: int, begin: Callable[..., None], *given: object) -> Iterator[ProcessPoolExecutor]:
    """Start `count` fresh processes, each of which begins with `begin(*given)`, all of which must survive pickling.

    Left early, what hasn't begun isn't done. Ctrl-C is for this process alone, and they end when it does, however it
    does. `PeerGone` where one of them ended without a word.
    """
    pool = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=partial(_begin, begin, *given)
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise PeerGone(
            f"one of {count} processes ended without a word, perhaps for want of memory: try again with fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None], *given: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: whoever started this process ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*given)


def _end_with_parent() -> None:
    """A process that waits for work holds the pipe it would come by open itself, so it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
