"""What commands write: results on stdout, one line for each error or warning on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LONGEST_NOTE = 400
_PIPED_WIDTH = 160  # characters of a table that goes to a file or another program


def write_line(text: str) -> None:
    """One line of result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # whoever reads a pipe has each path when its picture is there


def write_json(value: Any) -> None:
    """The one JSON document of a command."""
    write_line(json.dumps(value, ensure_ascii=False, indent=2))


def write_error(message: str) -> None:
    """One line, whatever the message holds."""
    sys.stderr.write(f"sfumato: {' '.join(message.split())}\n")


def stdout_console() -> Console:
    """For tables: as wide as the terminal, plain and wide where there is none."""
    from rich.console import Console

    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the one style all commands share."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=i < len(columns) - 1)  # only the last has long texts
    return made


def facts(pairs: dict[str, Any], title: str | None = None) -> Table:
    """Names and values, aligned, those without a value left out."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.title, made.title_justify, made.title_style = title, "left", "bold"
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, ""):
            made.add_row(name, Text(str(value)))
    return made


def log_to_stderr(*, debug: bool) -> None:
    """Show the package's warnings, one line each (with `debug`, everything it logs)."""
    logger = logging.getLogger("sfumato")
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    if not any(isinstance(handler, _LineHandler) for handler in logger.handlers):
        logger.addHandler(_LineHandler())
        logger.propagate = False


class _LineHandler(logging.Handler):
    """Writes to whatever stderr is at the moment: a live progress bar replaces it to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        line = " ".join(record.getMessage().split())
        shown = line if len(line) <= _LONGEST_NOTE else line[: _LONGEST_NOTE - 1] + "…"  # a cut prompt may be a book
        sys.stderr.write(f"{record.levelname.lower()}: {shown}\n")


def silence_stdout() -> None:
    """After a broken pipe: nothing more can be written, and Python's own flush at the end must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
