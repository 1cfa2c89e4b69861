"""The command `sfumato`: its commands, and what its exit codes and its last line on stderr say."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import sfumato
from sfumato.cli.data.commands import data
from sfumato.cli.evaluate.evaluate import evaluate
from sfumato.cli.images.explain import explain, samplers
from sfumato.cli.images.generate import generate
from sfumato.cli.images.grid import grid
from sfumato.cli.images.interpolate import interpolate
from sfumato.cli.images.replay import replay
from sfumato.cli.machine.bench import bench
from sfumato.cli.machine.doctor import doctor
from sfumato.cli.machine.emissions import emissions
from sfumato.cli.machine.serve import serve
from sfumato.cli.models.card import card
from sfumato.cli.models.convert import convert
from sfumato.cli.models.inspect import inspect
from sfumato.cli.models.models import models
from sfumato.cli.terminal.output_lines import guarded_stdout, log_to_stderr, silence, write_error, write_traceback
from sfumato.cli.train.train import train
from sfumato.errors import PeerFailed, PeerGone, SfumatoError
from sfumato.files import system_refusal
from sfumato.runtime import bound_openmp_waiting

INTERRUPTED = 130

# The base of all usage errors: Click's own, or that of the copy of Click which newer versions of Typer carry.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="sfumato",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfumato {sfumato.__version__}")
        raise typer.Exit


@app.callback()
def sfumato_command(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", metavar="", help="Show tracebacks; goes behind any command too.")
    ] = False,
) -> None:
    """Pictures from words: Stable Diffusion v1, whole.

    sfumato generate "a red heart"
    """


_PICTURES, _UNDERSTAND, _MODELS, _TRAIN, _REPORT = "Pictures", "Understand", "Models", "Train", "Report"
_MACHINE = "This machine"

app.command(rich_help_panel=_PICTURES)(generate)
app.command(rich_help_panel=_PICTURES)(grid)
app.command(rich_help_panel=_PICTURES)(interpolate)
app.command(rich_help_panel=_PICTURES)(replay)
app.command(rich_help_panel=_UNDERSTAND)(inspect)
app.command(rich_help_panel=_UNDERSTAND)(explain)
app.command(rich_help_panel=_UNDERSTAND)(samplers)
app.add_typer(evaluate, name="evaluate", rich_help_panel=_UNDERSTAND)
app.add_typer(models, name="models", rich_help_panel=_MODELS)
app.command(rich_help_panel=_MODELS)(convert)
app.add_typer(data, name="data", rich_help_panel=_TRAIN)
app.add_typer(train, name="train", rich_help_panel=_TRAIN)
app.command(rich_help_panel=_REPORT)(card)
app.command(rich_help_panel=_REPORT)(emissions)
app.command(rich_help_panel=_MACHINE)(doctor)
app.command(rich_help_panel=_MACHINE, context_settings={"allow_extra_args": True})(bench)  # `--json FILE`, as it was
app.command(rich_help_panel=_MACHINE)(serve)


def main() -> NoReturn:
    """Run this process's command line and end it with the command's exit code."""
    bound_openmp_waiting(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # σ and ▀ where the encoding is an old one
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code: 0 done, 1 failed, 2 asked for something impossible, 130 stopped.

    Every failure is exactly one line on stderr; `--debug` puts the traceback above it.
    """
    arguments, debug = _without_debug(arguments)
    log_to_stderr(debug=debug)
    try:
        with guarded_stdout():
            outcome = typer.main.get_command(app).main(list(arguments), prog_name="sfumato", standalone_mode=False)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the results had enough
        silence(sys.stdout)
        return 1
    except _UsageError as error:
        return _fail(error, _usage_message(error), 2, debug)
    except PeerGone as error:
        return _fail(error, str(error), error.exit_code, debug)
    except PeerFailed as error:  # the process that failed has said why
        return error.exit_code
    except SfumatoError as error:
        return _fail(error, str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        write_error("stopped")
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _is_nowhere():
            return _fail(error, "the current folder was deleted: go to one that is there, with cd", 2, debug)
        if isinstance(error, OSError) and (refusal := system_refusal(error)):
            return _fail(error, refusal, 1, debug)
        reason = f"something unexpected went wrong ({type(error).__name__}: {error})"
        hint = "" if debug else ": run again with --debug, and report what it shows"
        return _fail(error, reason + hint, 1, debug)
    if outcome == INTERRUPTED:  # how Typer hands on Ctrl-C
        write_error("stopped")
    return outcome if isinstance(outcome, int) else 0


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the command line, which may stand anywhere before a lone `--`."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word != "--debug"] + words[end:], "--debug" in words[:end]


def _is_nowhere() -> bool:
    """Tell whether the folder this process is in was deleted: asking for it is what the system then refuses."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _fail(error: Exception, message: str, code: int, debug: bool) -> int:
    if debug:
        write_traceback(error)
    write_error(message)
    return code


def _usage_message(error: Exception) -> str:
    """Say the usage error as one sentence that says where to look."""
    unknown = getattr(error, "option_name", None)
    if isinstance(error, typer.BadParameter) or unknown is None or not hasattr(error, "possibilities"):
        message = error.format_message().strip().rstrip(".").replace(". Did you", ": did you")  # type: ignore[attr-defined]
    else:
        near = " or ".join(sorted(error.possibilities or ()))
        message = f"no such option {unknown}" + (f": did you mean {near}?" if near else "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sfumato"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`".replace("?;", "?")
