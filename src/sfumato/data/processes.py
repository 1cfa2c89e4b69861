"""Processes of this machine that share work: where one thread can't feed the device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from sfumato.errors import PeerGone


@contextmanager
def process_pool(count: int, begin: Callable[..., None], *given: object) -> Iterator[ProcessPoolExecutor]:
    """So many fresh processes, each of which begins with `begin(*given)`, all of which must survive pickling.

    Left early, what hasn't begun isn't done. `PeerGone` where one of them ended without a word.
    """
    pool = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=begin, initargs=given
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise PeerGone(
            f"one of {count} processes ended without a word, perhaps for want of memory: try again with fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
