"""`sfumato serve`: an HTTP server that takes jobs and keeps them, whatever happens to it."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.options.flags import RUN_FLAGS, FlagValues
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.options.settings import read_settings
from sfumato.cli.terminal.output_lines import write_line
from sfumato.runtime import require

_server = partial(typer.Option, rich_help_panel="Server")
_access = partial(typer.Option, rich_help_panel="Access")
_NAMES = ("device", "dtype", "engine", "memory", "vae_tiling", "variant", "ema", "safety", "watermark")
_WORKER = tuple(flag for flag in RUN_FLAGS if flag.name in _NAMES)


@with_options(given=_WORKER)
def serve(
    given: FlagValues,
    host: Annotated[
        str | None, _server(metavar="ADDRESS", help="Listen there; others than 127.0.0.1 need a key.")
    ] = None,
    port: Annotated[int | None, _server(metavar="N", help="7860 unless given; 0 is any free one.")] = None,
    folder: Annotated[str | None, _server(metavar="DIR", help="Jobs and their pictures.")] = None,
    model: Annotated[
        list[str] | None, _server("--model", "-m", metavar="NAME", help="Serve this; again for more.")
    ] = None,
    config: Annotated[Path | None, _server(metavar="FILE", help="A TOML file of all these.")] = None,
    max_waiting: Annotated[int | None, _server(metavar="N", help="Jobs that may wait; 64.")] = None,
    api_key_file: Annotated[
        Path | None, _access(metavar="FILE", help="A key a line; SFUMATO_API_KEY is one more.")
    ] = None,
    allow_host: Annotated[list[str] | None, _access(metavar="NAME", help="A name it may be asked under.")] = None,
    public_url: Annotated[str | None, _access(metavar="URL", help="Its address before a proxy.")] = None,
    log_prompts: Annotated[bool, _access("--log-prompts", help="Write prompts into the log.")] = False,
    fake: Annotated[float | None, typer.Option(hidden=True, help="No model; seconds a step.")] = None,
) -> None:
    """Serve pictures over HTTP, until Ctrl-C. What was accepted is made, even if the machine stops in between."""
    require("fastapi", extra="serve")
    from sfumato.modelfiles.model_library import resolve
    from sfumato.serve.server import serve as run_server
    from sfumato.serve.server_settings import read_server_settings

    settings = read_server_settings(
        {
            "host": host,
            "port": port,
            "folder": folder,
            "models": model,
            "max_waiting": max_waiting,
            "allow_hosts": allow_host,
            "public_url": public_url,
            "log_prompts": log_prompts or None,
        },
        config=config,
        key_file=api_key_file,
    )
    if fake is None:
        for name in settings.models:
            resolve(name, offline=True)
    run_server(settings, _worker(given, fake), on_address=lambda url: write_line(f"serving on {url}"))


def _worker(given: FlagValues, fake: float | None) -> list[str]:
    """The command of the worker: the one that generates, or the one of the tests."""
    if fake is not None:
        return [sys.executable, "-m", "sfumato.serve.workers.fake_worker", "{socket}", str(fake)]
    run = read_settings(given).run()
    options: dict[str, Any] = dataclasses.asdict(run.loading) | {"token": None, "offline": True}
    told = {"options": options, "safety": run.safety, "watermark": run.watermark}
    return [sys.executable, "-m", "sfumato.serve.workers.worker_process", "{socket}", json.dumps(told)]
