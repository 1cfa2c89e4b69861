"""What the server itself takes, with a worker that generates nothing: answers, overhead, memory.

Milliseconds (median, 99th percentile) to refuse a wrong body, to accept a job and to list 50; the front's memory;
seconds from the command to the first answer; what a picture takes beyond its steps. Asked over one connection on this
machine. SFUMATO_BENCH_ROUNDS (200) questions of each kind.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

PICTURES, STEPS, STEP_SECONDS = 20, 10, 0.02
BAD = {"request": {"prompt": "a red heart", "steps": "many"}}
GOOD = {"request": {"prompt": "a red heart", "steps": 1}}


@contextlib.contextmanager
def server(folder: Path, *, step_seconds: float = 0.0) -> Iterator[tuple[httpx2.Client, int]]:
    """A client of a server, and the server's process id."""
    words = ["serve", "--port", "0", "--folder", str(folder), "--fake", str(step_seconds), "--max-waiting", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sfumato.cli.entry", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        with httpx2.Client(base_url=process.stdout.readline().split()[-1], timeout=60) as client:
            client.get("/livez")
            yield client, process.pid
    finally:
        process.kill()
        process.wait()


def milliseconds(ask: Callable[[], object], rounds: int) -> str:
    """Median and 99th percentile."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        ask()
        taken.append(1000 * (time.perf_counter() - started))
    return f"{statistics.median(taken):.1f}, {statistics.quantiles(taken, n=100)[-1]:.1f} ms"


def megabytes(process: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def overhead(client: httpx2.Client) -> float:
    """Seconds a job takes beyond the time its steps were told to take."""
    request = {"prompt": "a tree", "steps": STEPS}
    job = client.post("/api/jobs", json={"request": request, "count": PICTURES}).json()
    while (now := client.get(f"/api/jobs/{job['id']}").json())["state"] != "finished":
        time.sleep(0.02)
    return float(now["ended"] - now["started"]) - PICTURES * STEPS * STEP_SECONDS


def main() -> None:
    rounds = int(os.environ.get("SFUMATO_BENCH_ROUNDS", "200"))
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        with server(Path(folder, "a")) as (client, process):
            print(f"command to first answer: {time.perf_counter() - started:.2f} s")
            print(f"a wrong body refused: {milliseconds(lambda: client.post('/api/jobs', json=BAD), rounds)}")
            print(f"a job accepted: {milliseconds(lambda: client.post('/api/jobs', json=GOOD), rounds)}")
            print(f"a list of 50: {milliseconds(lambda: client.get('/api/jobs'), rounds)}")
            print(f"the front's memory: {megabytes(process):.0f} MB")
        with server(Path(folder, "b"), step_seconds=STEP_SECONDS) as (client, _):
            beyond = 1000 * overhead(client) / PICTURES
            print(f"a picture of {STEPS * STEP_SECONDS:g} s takes beyond that: {beyond:.0f} ms")
