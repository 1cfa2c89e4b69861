"""The console script, and nothing that takes time to import: Ctrl-C works from the start."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run this process's command line and end it with the command's exit code."""
    try:
        stdout_is_open = sys.stdout is not None
        _open_the_closed()
        if not stdout_is_open:
            sys.stderr.write("sfumato: stdout is closed: send the results somewhere, >/dev/null if nowhere\n")
            sys.exit(1)
        from sfumato.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:  # while importing: later ones are caught where the work is
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        sys.stderr.write("sfumato: stopped\n")
        sys.exit(130)


def _open_the_closed() -> None:
    """Give closed standard streams the null device: else the first file opened, a picture say, would get their number,
    and whatever a library writes there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
