"""`sfumato models`: what is on this machine, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.models.inspect import readable
from sfumato.cli.models.inspect import show_model as show
from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking

if TYPE_CHECKING:
    from sfumato.modelfiles.model_library import ModelLocation
    from sfumato.modelfiles.weight_cache import WarmPart

models = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Name = Annotated[str, typer.Argument(metavar="NAME")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="A branch, tag or commit.")]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help='Other files, such as "fp16".')]


@models.callback()
def about_models() -> None:
    """List, download, add, show, verify and remove models."""


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models on this machine, and the published ones that can be pulled by a short name.

    The folders in SFUMATO_MODEL_PATH are searched for checkpoints, too.
    """
    from sfumato.modelfiles.model_library import ALIASES
    from sfumato.modelfiles.model_library import list_models as known

    here = known()
    absent = {alias: hub_id for alias, hub_id in ALIASES.items() if alias not in {location.name for location in here}}
    if as_json:
        write_json({"models": [_document(location) for location in here], "can_be_pulled": absent})
        return
    listed = table("model", "from", "where")
    for location in here:
        listed.add_row(literal(location.name, "bold cyan"), location.source, literal(location.path))
    for alias, hub_id in absent.items():
        listed.add_row(f"[dim]{alias}[/]", "[dim]to pull[/]", f"[dim]{hub_id}[/]")
    console = stdout_console()
    console.print(listed)
    console.print("To download one: [bold]sfumato models pull v1-4[/], or any Hub id as OWNER/NAME")


@models.command()
def pull(name: Name, revision: Revision = None, variant: Variant = None, as_json: Json = False) -> None:
    """Download a model from the Hugging Face Hub: a short name such as v1-4, or OWNER/NAME.

    A private or gated one needs the token that `hf auth login` or HF_TOKEN left.
    """
    from sfumato.modelfiles.model_library import pull as fetch

    with tracking() as tracker:
        location = fetch(name, revision=revision, variant=variant, on_progress=tracker.on_progress)
    _say(location, as_json)


@models.command()
def add(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model's folder or file.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it. [dim]\\[its file name][/dim]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace the one of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Give a model on this machine a name. Its files stay where they are."""
    from sfumato.modelfiles.model_library import add as remember

    _say(remember(path, name=name, overwrite=overwrite), as_json)


models.command("show")(show)


@models.command()
def verify(name: Name, as_json: Json = False) -> None:
    """Compare a model's files with the hashes noted when it was added or pulled: exit code 1 if any differs.

    The embedded model comes with the package, whose installer has compared it.
    """
    from sfumato.modelfiles.model_library import verify as check

    checks = check(name)
    if as_json:
        files = [{"file": c.file, "expected": c.expected, "found": c.found, "ok": c.ok} for c in checks]
        write_json({"name": name, "ok": all(c.ok for c in checks), "files": files})
    else:
        if not checks:
            write_line(f"{name}: comes with the package, whose installer has compared its files")
        for c in checks:
            write_line(f"{c.file}: {'unchanged' if c.ok else 'gone' if c.found is None else 'changed'}")
    if not all(c.ok for c in checks):
        raise typer.Exit(1)


@models.command("rm")
def remove(
    name: Name,
    delete_files: Annotated[
        bool, typer.Option("--delete-files", metavar="", help="Delete what `pull` downloaded, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Forget a model. Its files stay, unless --delete-files."""
    from sfumato.modelfiles.model_library import remove as forget

    freed = forget(name, delete_files=delete_files)
    if as_json:
        write_json({"name": name, "bytes_freed": freed})
    else:
        write_line(
            f"{name} is forgotten" + (f", {readable(freed)} freed" if freed else "; its files are where they were")
        )


@models.command()
def warm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model's name or path.")],
    dtype: Annotated[str, typer.Option(metavar="NAME", help="What it will run in.")] = "float32",
    as_json: Json = False,
) -> None:
    """Write a model's weights once more as a run uses them, so that it starts faster and in less memory.

    Worth it for most files of other programs, and for those in another dtype. `cache` lists and clears what it wrote.
    """
    from sfumato.errors import InvalidRequest
    from sfumato.modelfiles.model_library import resolve
    from sfumato.modelfiles.weight_cache import warm as write
    from sfumato.runtime import DTYPES

    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}", field="dtype")
    import torch

    written = write(resolve(name, offline=True).path, dtype=getattr(torch, dtype))
    if as_json:
        write_json({"name": name, "dtype": dtype, "entries": [_entry(part) for part in written]})
    elif written:
        write_line(f"{name}: {readable(sum(part.bytes for part in written))} in {written[0].path.parent}")
    else:
        write_line(f"{name}: nothing to do: its weights are used where they lie in its files")


@models.command()
def cache(
    clear: Annotated[str | None, typer.Option(metavar="KIND", help="Delete what is there of it, or all.")] = None,
    as_json: Json = False,
) -> None:
    """List what was kept to start faster: warm weights, compiled kernels, converted networks, the benchmark's model.

    All of it is made anew where it is needed, but for warm weights: those are written by `warm`.
    """
    from sfumato.modelfiles.weight_cache import entries
    from sfumato.user_cache import KINDS, cleared, contents

    if clear is not None:
        freed = cleared(clear)
        if as_json:
            write_json({"cleared": clear, "bytes_freed": freed})
        else:
            write_line(f"{readable(freed)} freed")
        return
    sizes, warm_entries = contents(), entries()
    if as_json:
        write_json({"bytes": sizes, "warm": [_entry(part) for part in warm_entries]})
        return
    listed = table("kind", "size", "what it is")
    for kind, size in sizes.items():
        listed.add_row(f"[bold cyan]{kind}[/]", readable(size), KINDS[kind].about)
    stdout_console().print(listed)
    for part in warm_entries:
        write_line(f"warm {part.part} of {part.source}: {readable(part.bytes)}")


def _entry(part: WarmPart) -> dict[str, Any]:
    return {"part": part.part, "of": part.source, "path": str(part.path), "bytes": part.bytes}


def _say(location: ModelLocation, as_json: bool) -> None:
    if as_json:
        write_json(_document(location))
    else:
        write_line(f"{location.name}: {location.path}")


def _document(location: ModelLocation) -> dict[str, Any]:
    return {
        "name": location.name,
        "kind": location.kind,
        "path": str(location.path),
        "source": location.source,
        "hub_id": location.hub_id,
        "revision": location.revision,
    }
