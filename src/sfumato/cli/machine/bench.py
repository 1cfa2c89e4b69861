"""`sfumato bench`: our engines and presets beside other programs, measured in turn."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sfumato.cli.machine.bench_quality import Quality, show_quality, write_quality
from sfumato.cli.models.inspect import readable
from sfumato.cli.options.flags import Json, Overwrite
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json, write_line
from sfumato.errors import InvalidRequest
from sfumato.files import user_path, write_bytes, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from sfumato.bench.bench_plan import What
    from sfumato.bench.measure import Results, Row

_what = partial(typer.Option, rich_help_panel="What runs")
_how = partial(typer.Option, rich_help_panel="How it is measured")
_results = partial(typer.Option, rich_help_panel="Results")


@with_options(quality=Quality)
def bench(
    context: typer.Context,
    quality: Quality,
    model: Annotated[str, _what("--model", "-m", metavar="MODEL", help="v1: v1-4's shapes, random; or any.")] = "v1",
    contenders: Annotated[str, _what(metavar="A,B…", help="Who takes part. [dim]\\[all that are worth it][/dim]")] = "",
    what: Annotated[str, _what(metavar="A,B…", help="Of step, decode and image.")] = "step",
    size: Annotated[int | None, _what(metavar="PX", help="Side of the pictures. [dim]\\[the model's][/dim]")] = None,
    batch: Annotated[int, _what(metavar="N", help="Pictures together.")] = 1,
    device: Annotated[str, _what(metavar="NAME", help="cpu, cuda, mps.")] = "cpu",
    dtype: Annotated[str, _what(metavar="NAME", help="auto, float32, float16, bfloat16.")] = "auto",
    rounds: Annotated[int, _how(metavar="N", help="Turns of each; medians are shown.")] = 3,
    steps: Annotated[int, _how("--steps", "-S", metavar="N", help="Guided steps in a turn.")] = 1,
    image_steps: Annotated[int, _how(metavar="N", help="Steps of a whole picture.")] = 50,
    threads: Annotated[int | None, _how(metavar="N", help="Of each. [dim]\\[each program's own choice][/dim]")] = None,
    fresh: Annotated[
        bool | None,
        _how(
            "--fresh/--no-fresh",
            metavar="",
            help="A new process a turn: less memory, loading measured each time. [dim]\\[if memory is short][/dim]",
        ),
    ] = None,
    out: Annotated[
        Path | None, _results("--out", "-o", metavar="FILE", help="Everything that was measured, as JSON.")
    ] = None,
    plot_file: Annotated[
        Path | None, _results("--plot", metavar="FILE", help="The table as .svg, .png or .pdf.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure our engines beside diffusers, OpenVINO and stable-diffusion.cpp, each in its own process, in turns.

    sfumato bench --model pocket --rounds 5 --out results.json --plot results.svg

    sfumato bench --quality presets.png
    """
    from sfumato.bench.bench_plan import Plan
    from sfumato.bench.contenders import choose
    from sfumato.bench.measure import measure
    from sfumato.bench.results import document
    from sfumato.bench.subject import model_folder
    from sfumato.cli.images.destination import check_free, check_writable

    if context.args:
        out, as_json = _as_before(context.args, out, as_json)
    files = [user_path(path) for path in (quality.sheet, out, None if quality.sheet else plot_file) if path is not None]
    for path in files:
        check_free(path, overwrite)
        check_writable(path.parent)
    if quality.sheet is not None:
        shown = show_quality(model, quality, quality.sheet, overwrite=overwrite)
        _hand_out(shown, lambda: write_quality(shown), out, files, as_json, overwrite=overwrite)
        return
    plan = Plan(
        model=model,
        size=size,
        batch=batch,
        steps=steps,
        rounds=rounds,
        threads=threads,
        what=cast("tuple[What, ...]", tuple(_words(what))),
        image_steps=image_steps,
        device=device,
        dtype=dtype,
        fresh=fresh,
    )
    chosen = choose(_words(contenders), what=plan.what)
    if plot_file is not None:
        from sfumato.bench.plot import check_format

        check_format(plot_file.suffix.lower())
    with _status() as on_turn:
        results = measure(plan, chosen, model_folder(model, on_turn=on_turn), on_turn=on_turn)
    made = document(results)
    if plot_file is not None:
        from sfumato.bench.plot import plot

        write_bytes(user_path(plot_file), plot(made, plot_file.suffix.lower()), overwrite=overwrite)
    _hand_out(made, lambda: _write(results), out, files, as_json, overwrite=overwrite)


def _as_before(words: Sequence[str], out: Path | None, as_json: bool) -> tuple[Path | None, bool]:
    """Read `--json FILE` as it was before `--out`: the switch with one word behind it, "-" for stdout.

    Raises `InvalidRequest` for any other word.
    """
    if len(words) > 1 or not as_json or out is not None:
        raise InvalidRequest(f"bench takes no word beside its options: leave out {' '.join(words)!r}")
    return (None, True) if words[0] == "-" else (Path(words[0]), False)


def _hand_out(
    made: dict[str, Any],
    show: Callable[[], None],
    out: Path | None,
    files: Sequence[Path],
    as_json: bool,
    *,
    overwrite: bool,
) -> None:
    """Write the document to its file, and give it, or what people read and the files' names, on stdout."""
    if out is not None:
        write_text(user_path(out), json.dumps(made, indent=2, ensure_ascii=False) + "\n", overwrite=overwrite)
    if as_json:
        write_json(made)
        return
    show()
    for path in files:
        write_line(str(path))


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Whose turn it is, on stderr: one line that changes on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _write(results: Results) -> None:
    plan, machine, console = results.plan, results.machine, stdout_console()
    size = f"{plan.size}×{plan.size}" if plan.size else "its own size"
    title = (
        f"{plan.model} at {size}, batch {plan.batch}, {machine['threads']} threads, {machine['processor']}; "
        f"medians of {plan.rounds} rounds in turn"
    )
    console.print(_timings(results, title))
    console.print(_loading(results))
    peaks = ", ".join(f"{value:.0f} GFLOP/s in {dtype}" for dtype, value in results.gemm.items())
    console.print(literal(f"A matrix product reaches {peaks or 'nothing: no contender ran'} here."))
    for row in results.rows:
        if row.why_not:
            write_line(f"{row.contender.name}: not measured: {row.why_not}")
        elif row.ended:
            write_line(f"{row.contender.name}: only its first rounds: {row.ended}")
        elif row.contender.kind == "engine" and row.runs != row.contender.name:
            write_line(f"{row.contender.name}: {row.runs} ran in its place")


def _timings(results: Results, title: str) -> Table:
    measured = [what for what in ("step", "decode", "image") if what in results.plan.what]
    first = results.first
    columns = [
        column for what in measured for column in (f"s/{what}", "spread", f"× {first.contender.name if first else ''}")
    ]
    shown = table("contender", *columns, "GFLOP/s", "of peak", "error", title=title)
    for row in results.rows:
        if row.why_not:
            continue
        cells: list[str] = []
        for what in measured:
            seconds = row.seconds[what]
            cells += [_number(row.median(what)), f"{_number(min(seconds))}–{_number(max(seconds))}"]
            cells.append(_number(results.ratio(row, what)))
        share = results.share_of_peak(row)
        shown.add_row(
            literal(row.contender.name, "bold cyan"),
            *cells,
            _number(results.gflops(row)),
            "" if share is None else f"{share:.0%}",
            "" if row.error is None else f"{row.error:.0e}",
        )
    return shown


def _loading(results: Results) -> Table:
    shown = table("contender", "imports s", "loaded s", "first step s", "peak memory", "of it private when loaded")
    for row in results.rows:
        if not row.why_not:
            shown.add_row(
                literal(row.contender.name, "bold cyan"),
                *(_number(_median(values)) for values in (row.imports, row.load, row.first_step)),
                _memory(row),
                "" if row.private is None else readable(row.private),
            )
    return shown


def _median(values: list[float]) -> float | None:
    import statistics

    return statistics.median(values) if values else None


def _memory(row: Row) -> str:
    own = "" if row.peak is None else readable(row.peak)
    return own if row.device_peak is None else f"{own} + {readable(row.device_peak)} on the device"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
