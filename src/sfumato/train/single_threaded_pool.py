"""Threads that work beside the one that trains, without costing it its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def single_threaded_pool(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads, started, in each of which torch computes on that thread alone.

    A thread that shares out a single operation gets OpenMP helpers of its own, for as long as it lives. From then on
    GNU's OpenMP sees more threads than cores and puts waiting ones to sleep at once instead of after some
    milliseconds (libgomp's manual, GOMP_SPINCOUNT): training would wake its helpers anew in every operation.
    """
    threads = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first use of torch sets its number to the default
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=begin)
    for _ in range(count):
        pool.submit(int)  # one that finds none idle begins one
    started.wait()
    torch.set_num_threads(threads)  # what a thread sets is the default of all that are begun later, too
    return pool
