"""`sfumato doctor`: what is wrong with this machine, and what would make it faster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.options.settings import ENVIRONMENT, read_settings, unknown_names
from sfumato.cli.terminal.output_lines import literal, stdout_console, write_json
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.doctor.finding import Finding, State

_MARKS: Mapping[State, tuple[str, str]] = {"ok": ("✓", "green"), "advice": ("!", "yellow"), "broken": ("✗", "bold red")}


def doctor(as_json: Json = False) -> None:
    """Say what is wrong with this machine or would make it faster, a line each. Exit code 1 if something is broken.

    Nothing is changed, but for the kernels: they are compiled where they aren't yet.
    """
    found = list(_findings())
    if as_json:
        write_json({"findings": [asdict(finding) for finding in found], "broken": _is_broken(found)})
    else:
        _write(found)
    if _is_broken(found):
        raise typer.Exit(1)


def _findings() -> Iterator[Finding]:
    from sfumato.doctor.machine import machine_facts, machine_findings
    from sfumato.doctor.software import software_findings, torch_settings
    from sfumato.doctor.storage import storage_findings

    yield from software_findings()
    threads, capability = torch_settings()
    yield from machine_findings(machine_facts(), threads=threads, capability=capability)
    yield from storage_findings()
    yield from _settings(os.environ)


def _settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The names that are set in the environment, and whether the settings can be read. Values are nobody's business."""
    from sfumato.doctor.finding import advice, broken, ok

    names = sorted(name for name in environment if name.startswith(ENVIRONMENT))
    unknown = unknown_names(environment)
    for name, near in unknown.items():
        what = f"did you mean {near}?" if near else "unset it: nothing reads it"
        yield advice("environment", f"{name} is no setting", what)
    known = [name for name in names if name not in unknown]
    try:
        settings = read_settings(
            {}, environment={name: environment[name] for name in environment.keys() - unknown.keys()}
        )
        settings.request("")
        settings.run()
    except SfumatoError as error:
        yield broken("settings", str(error), "correct it there")
    else:
        yield ok("settings", f"set: {', '.join(known)}" if known else "none in the environment")


def _is_broken(found: list[Finding]) -> bool:
    return any(finding.state == "broken" for finding in found)


def _write(found: list[Finding]) -> None:
    from rich.table import Table

    shown = Table.grid(padding=(0, 1))
    for column in ({"no_wrap": True}, {"no_wrap": True, "style": "cyan"}, {"overflow": "fold"}):
        shown.add_column(**column)
    for finding in found:
        mark, style = _MARKS[finding.state]
        words = finding.seen + (f" → {finding.advice}" if finding.advice else "")
        shown.add_row(literal(mark, style), literal(finding.about), literal(words))
    stdout_console().print(shown)
