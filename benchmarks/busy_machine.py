"""What a busy machine costs: `sfumato generate` idle and beside other processes, OpenMP's waiting bounded and not.

Each engine takes its turn with the setting and without, 50 steps of the embedded model, while 0, 2 and 10 processes
that do nothing but compute run beside it. SFUMATO_BENCH_ROUNDS (3) rounds, SFUMATO_BENCH_BESIDE (0,2,10) processes,
SFUMATO_BENCH_PATIENCE (300) seconds for one picture, which is then given up.
Prints a table for docs/performance.md: seconds of whole commands, the median and the most.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ENGINES = ("eager", "winograd")
WAYS = {  # `run` is the same command line in a process that has not set anything
    "before": "import sys; from sfumato.cli.main import run; sys.exit(run(sys.argv[1:]))",
    "now": "from sfumato.cli.main import main; main()",
}
OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
PATIENCE = float(os.environ.get("SFUMATO_BENCH_PATIENCE", "300"))  # seconds for one picture


@contextlib.contextmanager
def processes_beside(count: int) -> Iterator[None]:
    """So many processes that keep a core each busy, for the time of the block."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds_of_a_picture(engine: str, way: str, out: Path) -> float:
    """The whole command, from its start to its end; `PATIENCE` where it takes longer."""
    words = ["generate", "rocket", "--steps", "50", "--engine", engine, "--device", "cpu", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP}
    started = time.perf_counter()
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-c", WAYS[way], *words, "--overwrite"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment,
            timeout=PATIENCE,
        )
    return time.perf_counter() - started


def main() -> None:
    rounds = int(os.environ.get("SFUMATO_BENCH_ROUNDS", "3"))
    besides = [int(word) for word in os.environ.get("SFUMATO_BENCH_BESIDE", "0,2,10").split(",")]
    turns = [(engine, way) for engine in ENGINES for way in WAYS]
    with TemporaryDirectory() as folder:
        pictures = {turn: Path(folder, f"{'-'.join(turn)}.png") for turn in turns}
        for engine in ENGINES:
            seconds_of_a_picture(engine, "now", pictures[engine, "now"])  # compiles, and fills the caches
        print(f"| beside | {' | '.join(f'`{engine}` {way}' for engine, way in turns)} |")
        print("|---" * (1 + len(turns)) + "|")
        for count in besides:
            seconds: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
            with processes_beside(count):
                for _ in range(rounds):
                    for turn in turns:
                        seconds[turn].append(seconds_of_a_picture(*turn, pictures[turn]))
            cells = [f"{statistics.median(seconds[turn]):.1f} s ({max(seconds[turn]):.1f})" for turn in turns]
            print(f"| {f'{count} processes' if count else 'nothing'} | {' | '.join(cells)} |", flush=True)
        for engine in ENGINES:
            made = {
                picture.read_bytes() for turn, picture in pictures.items() if turn[0] == engine and picture.exists()
            }
            print(f"`{engine}`: {'the same picture, byte for byte' if len(made) == 1 else 'NOT the same picture'}")


if __name__ == "__main__":
    main()
