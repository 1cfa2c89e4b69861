"""Processes that share work end with the one that started them, and Ctrl-C is that one's alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfumato.data.process_pool import process_pool

WAITING = """
import multiprocessing, time
from sfumato.data.process_pool import process_pool

if __name__ == "__main__":
    with process_pool(2, int) as pool:
        list(pool.map(abs, range(2)))
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_killed_with_kill_9_it_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) in (1, 2)  # a second one is begun only where the first is busy
        parent.kill()
    deadline = time.monotonic() + 60.0
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, pids))


def test_ctrl_c_reaches_only_the_process_that_waits_for_them() -> None:
    with process_pool(2, int) as pool:
        assert list(pool.map(abs, range(-2, 0))) == [2, 1]
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
        assert list(pool.map(abs, range(-4, 0))) == [4, 3, 2, 1]
