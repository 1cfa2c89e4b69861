"""What commands write: results on stdout, one line for each error or warning on stderr.

Much of it comes from strangers (a picture's metadata, file names): nothing here lets a value steer the terminal, forge
a line or turn the reading direction.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

from sfumato.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_Done = TypeVar("_Done")

_LONGEST_NOTE = 400
_PIPED_WIDTH = 160  # characters of a table that goes to a file or another program
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, half a surrogate pair, line and paragraph separators
_JOINERS = "\u200c\u200d"  # format characters that Persian, Hindi and emoji can't do without


def visible(text: str) -> str:
    """The text on one line, with every character that does something instead of showing something as `\\u001b`."""
    if text.isprintable():
        return text
    return "".join(json.dumps(letter)[1:-1] if _acts(letter) else letter for letter in text)


def _acts(letter: str) -> bool:
    return unicodedata.category(letter) in _UNSEEN and letter not in _JOINERS


def write_line(text: str) -> None:
    """Write one line of result."""
    _write_result(visible(text) + "\n")


def write_json(value: Any) -> None:
    """Write the one JSON document of a command."""
    document = json.dumps(value, ensure_ascii=False, indent=2)
    _write_result("\n".join(map(visible, document.split("\n"))) + "\n")  # inside its strings line ends are escaped


def write_error(message: str) -> None:
    """Write one line, whatever the message holds."""
    write_note(f"sfumato: {' '.join(message.split())}")


def write_note(line: str) -> None:
    """Write one line for people. Where nobody can be told, the exit code still says how it went."""
    try:
        sys.stderr.write(visible(line) + "\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def write_traceback(error: BaseException) -> None:
    """Write where an error came from, for `--debug`."""
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        write_note(line)


def stdout_console() -> Console:
    """Give the console for tables: as wide as the terminal, plain and wide where there is none."""
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


def literal(value: object, style: str = "") -> Text:
    """A table cell that says exactly this, whatever markup or control characters are in it."""
    from rich.text import Text

    return Text(visible(str(value)), style=style)


def facts(pairs: dict[str, Any], title: str | None = None) -> Table:
    """Names and values, aligned, those without a value left out."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    made.title, made.title_justify, made.title_style = title, "left", "bold"
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, ""):
            made.add_row(literal(name), literal(value))
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
        # what is told without being a warning needs no word before it
        write_note(shown if record.levelno == logging.INFO else f"{record.levelname.lower()}: {shown}")


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Whatever writes results inside, ours or a library, gets an `OutputError` where stdout doesn't take them."""
    with redirect_stdout(cast(TextIO, _Results(sys.stdout))):
        yield


class _Results:
    """A text stream that is another one but for the error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._guarded(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, act: Callable[[], _Done]) -> _Done:
        try:
            return act()
        except BrokenPipeError:  # no failure: whoever read the results had enough
            raise
        except OSError as error:
            silence(self._stream)
            reason = error.strerror or str(error)
            raise OutputError(f"the results can't be written to stdout ({reason}): send them elsewhere") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Point a stream to nowhere: it takes nothing more, and Python's own flush at the end must not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _write_result(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()  # whoever reads a pipe has each path when its picture is there
