"""Threads beside training: each alone, and nobody else's number of threads changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sfumato.train.single_threaded_pool import single_threaded_pool


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_each_thread_computes_alone_and_the_others_as_before() -> None:
    together = threading.Barrier(3)  # so that no thread answers twice

    def own_threads() -> int:
        together.wait()
        return torch.get_num_threads()

    with single_threaded_pool(3, "samples") as pool:
        assert [future.result() for future in [pool.submit(own_threads) for _ in range(3)]] == [1, 1, 1]
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
