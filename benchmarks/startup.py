"""How long until the program answers: `import sfumato` and `sfumato --help`, each in a fresh process.

The interpreter's own start is measured in the same interleaved run and taken off the import.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import sfumato": [sys.executable, "-c", "import sfumato"],
    "sfumato --help": [sys.executable, "-c", "from sfumato.cli.main import main; main()", "--help"],
}
ROUNDS = 15


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_:  # the first round warms the file cache
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    start = medians["python -c pass"]
    for name, median in medians.items():
        print(f"{name:16} {median * 1000:6.0f} ms   above the bare interpreter {(median - start) * 1000:6.0f} ms")


if __name__ == "__main__":
    main()
