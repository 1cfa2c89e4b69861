"""`sfumato evaluate`: a pinned list of prompts, generated, scored, plotted and reported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.evaluate.evaluate_compare import compare
from sfumato.cli.evaluate.evaluate_options import (
    Clip,
    Count,
    EfficientNet,
    Examples,
    Folder,
    Guidance,
    Inception,
    Level,
    Preferences,
    Prompts,
    ProtocolName,
    Reference,
    Resamples,
    Samplers,
    Statistics,
    Steps,
    adapted,
    grid_option,
    loading_options,
    networks,
    statistics_files,
)
from sfumato.cli.evaluate.evaluate_probe import probe
from sfumato.cli.options.flags import LOAD_FLAGS, FlagValues, Json, Overwrite
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking
from sfumato.errors import InvalidRequest
from sfumato.files import user_path

if TYPE_CHECKING:
    from sfumato.modelfiles.load_options import LoadOptions
    from sfumato.report.evaluation.protocols import Protocol
    from sfumato.report.features.network import Network

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
evaluate.command()(compare)
evaluate.add_typer(probe, name="probe")


@evaluate.callback()
def about_evaluate() -> None:
    """Judge models by their pictures: FID, KID, CLIP score and more, as curves and as a page."""


@evaluate.command()
def prompts(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="captions_val2017.json, a .jsonl, a text file, or a folder of pictures with captions.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The list to write (.jsonl).")] = Path(
        "prompts.jsonl"
    ),
    count: Annotated[int, typer.Option("--count", "-c", metavar="N", help="Prompts to draw.")] = 10_000,
    seed: Annotated[int, typer.Option(metavar="N", help="Which are drawn.")] = 0,
    scenes: Annotated[
        bool,
        typer.Option(
            "--scenes", metavar="", help="Held-out scenes composed of the emoji set in the folder, as pocket's are."
        ),
    ] = False,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels", metavar="", help="Names of the emoji set in the folder, evenly from all that pocket was taught."
        ),
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Put a folder's own pictures there, as reference.")
    ] = None,
    side: Annotated[int | None, typer.Option(metavar="PX", help="Size of these pictures.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Draw a list of prompts and pin it: its SHA-256 stands in every report.

    sfumato evaluate prompts captions_val2017.json --count 10000
    """
    from sfumato.report.evaluation.data_prompts import (
        caption_prompts,
        dataset_at,
        held_out_scenes,
        label_prompts,
        save_pictures,
    )
    from sfumato.report.evaluation.prompt_list import drawn, read_prompts, write_prompts

    source = user_path(source)
    if scenes and labels:
        raise InvalidRequest("--scenes and --labels are two lists: give one of them")
    if source.is_dir():
        if labels:
            made, dataset, indices = label_prompts(source, count)
        else:
            dataset = held_out_scenes(source, count, seed) if scenes else dataset_at(source)
            made, indices = caption_prompts(dataset, min(count, len(dataset)), seed)
        write_prompts(made, user_path(out), overwrite=overwrite)
        if pictures is not None:
            save_pictures(dataset, indices, user_path(pictures), side=side)
    elif scenes or labels or pictures is not None:
        raise InvalidRequest(f"{source} is no folder of pictures: --scenes, --labels and --pictures need one")
    else:
        made = drawn(read_prompts(source), count, seed)
        write_prompts(made, user_path(out), overwrite=overwrite)
    if as_json:
        write_json({"path": str(out), "prompts": len(made.prompts), "sha256": made.sha256})
    else:
        write_line(f"{out}: {len(made.prompts)} prompts, SHA-256 {made.sha256}")


_where = partial(typer.Option, rich_help_panel="Where")

ModelsArgument = Annotated[
    list[str],
    grid_option("--model", "-m", metavar="[LABEL=]MODEL", help="Name, path or Hub id; several are several curves."),
]
ShardOption = Annotated[str | None, _where(metavar="I/N", help="Only the I-th of N parts.")]
On = Annotated[str, _where("--on", metavar="NAME", help="here, or ray: a Ray cluster's machines.")]


@evaluate.command()
@with_options(given=LOAD_FLAGS)
def run(
    given: FlagValues,
    folder: Folder,
    model: ModelsArgument,
    prompts: Prompts = None,
    protocol: ProtocolName = "card",
    count: Count = None,
    guidance: Guidance = None,
    samplers: Samplers = None,
    steps: Steps = None,
    shard: ShardOption = None,
    on: On = "here",
    shards: Annotated[int, _where(metavar="N", help="Parts for a cluster.")] = 8,
    gpus: Annotated[float, _where(metavar="X", help="GPUs a part needs there.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Paint every prompt at every setting. What is there already stays: run it again after whatever stopped it.

    sfumato evaluate run out --model pocket --prompts prompts.jsonl --protocol pocket --count 40
    """
    chosen = adapted(protocol, count=count, guidance=guidance, samplers=samplers, steps=steps)
    made = _generate(
        folder, model, prompts, chosen, loading_options(given), shard=shard, on=on, shards=shards, gpus=gpus
    )
    if as_json:
        write_json({"folder": str(folder), "painted": made})
    else:
        write_line(f"{folder}: {made} pictures painted")


@evaluate.command()
def score(
    folder: Folder,
    inception: Inception = None,
    clip: Clip = None,
    efficientnet: EfficientNet = False,
    preference: Preferences = None,
    reference: Reference = None,
    statistics: Statistics = None,
    resamples: Resamples = 100,
    level: Level = 0.95,
    as_json: Json = False,
) -> None:
    """Compute what the networks at hand allow: FID in three conventions, FID∞, KID, CLIP score, CMMD, PickScore, HPSv2.

    sfumato evaluate score out --efficientnet --reference real --clip retriever
    """
    judges = partial(networks, inception=inception, clip=clip, efficientnet=efficientnet, preference=preference)
    document = _score(folder, judges, reference, statistics, resamples, level)
    _show_scores(document, as_json)


@evaluate.command()
def plot(
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=".svg, .png or .pdf. [dim]\\[FOLDER/curves.svg][/dim]"),
    ] = None,
    distance: Annotated[str | None, typer.Option(metavar="METRIC", help="The upright axis.")] = None,
    published: Annotated[
        bool | None,
        typer.Option(
            "--published/--no-published", metavar="", help="The card's curves, too. [dim]\\[beside an FID][/dim]"
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the curves: a distance against the CLIP score, a point a guidance scale."""
    from sfumato.report.evaluation.plotting import save_plot
    from sfumato.report.evaluation.scoring import read_scores

    path = user_path(out) if out is not None else folder / "curves.svg"
    save_plot(read_scores(folder), path, y=distance, published=published, overwrite=overwrite or out is None)
    write_line(str(path))


@evaluate.command()
def report(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="[dim]\\[FOLDER/report.html][/dim]")
    ] = None,
    examples: Examples = 8,
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page with curves, scores, pictures, settings and hashes. It needs no other file."""
    from sfumato.report.evaluation.page import save_page

    path = user_path(out) if out is not None else folder / "report.html"
    save_page(folder, path, examples=examples, overwrite=overwrite or out is None)
    write_line(str(path))


@evaluate.command("reproduce-card")
@with_options(given=LOAD_FLAGS)
def reproduce_card(
    given: FlagValues,
    model: Annotated[list[str], typer.Argument(metavar="MODEL…", help="v1-4, say; several are several curves.")],
    prompts: Prompts,
    reference: Reference = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The evaluation's folder.")] = Path(
        "evaluation"
    ),
    protocol: ProtocolName = "card",
    count: Count = None,
    inception: Inception = None,
    clip: Clip = None,
    efficientnet: EfficientNet = False,
    preference: Preferences = None,
    statistics: Statistics = None,
    resamples: Resamples = 100,
    level: Level = 0.95,
    shard: ShardOption = None,
    as_json: Json = False,
) -> None:
    """All of it as the card did: 8 guidance scales, 50 PLMS steps, FID against CLIP score, the published curves beside.

    sfumato evaluate reproduce-card v1-4 --prompts captions_val2017.json --reference val2017
    --inception pt_inception-2015-12-05-6726825d.pth --clip clip-vit-large-patch14
    """
    from sfumato.report.evaluation.curves import drawable
    from sfumato.report.evaluation.page import save_page
    from sfumato.report.evaluation.plotting import save_plot
    from sfumato.report.evaluation.scoring import check_reference

    judges = partial(networks, inception=inception, clip=clip, efficientnet=efficientnet, preference=preference)
    # Whatever is missing is found out before a day of generating, which then has the memory to itself.
    loaded = judges()
    if not loaded:
        raise InvalidRequest("nothing to score with: give --inception FILE and --clip FOLDER")
    check_reference(loaded, statistics_files(statistics), pictures=reference is not None)
    del loaded
    chosen = adapted(protocol, count=count, guidance=None, samplers=None, steps=None)
    _generate(out, model, prompts, chosen, loading_options(given), shard=shard)
    if shard is not None:
        write_line(f"{out}: shard {shard} is painted; score when all are")
        return
    document = _score(out, judges, reference, statistics, resamples, level)
    for suffix in (".svg", ".png") if drawable(document) else ():
        save_plot(document, out / f"curves{suffix}", overwrite=True)
    save_page(out, out / "report.html", overwrite=True)
    _show_scores(document, as_json)
    if not as_json:
        write_line(str(out / "report.html"))


def _generate(
    folder: Path,
    models: list[str],
    prompts: Path | None,
    protocol: Protocol,
    options: LoadOptions,
    *,
    shard: str | None = None,
    on: str = "here",
    shards: int = 1,
    gpus: float = 0.0,
) -> int:
    from sfumato.report.evaluation.evaluation_plan import PLAN, labelled, make_plan, read_run, start
    from sfumato.report.evaluation.on_ray import generate_on_ray
    from sfumato.report.evaluation.prompt_list import drawn, read_prompts
    from sfumato.report.evaluation.run_pictures import generate_missing, load_for_evaluation, missing, parse_shard

    part = parse_shard(shard) if shard is not None else None
    if on not in ("here", "ray"):
        raise InvalidRequest(f"--on {on!r}: use here, or ray")
    if prompts is None:
        if not (folder / PLAN).exists():
            raise InvalidRequest("give the list of prompts with --prompts FILE: `sfumato evaluate prompts` makes one")
        listed = read_run(folder)[1]
    else:
        listed = drawn(read_prompts(user_path(prompts)), protocol.prompts, protocol.prompt_seed)
    plan = make_plan(protocol, [labelled(model) for model in models], listed)
    start(folder, plan, listed)
    if on == "ray":
        return generate_on_ray(folder, shards, options=options, gpus=gpus)
    waiting = sum(len(missing(folder, plan, cell, part)) for cell in plan.cells)
    with tracking(waiting) as tracker:
        return generate_missing(
            folder,
            plan,
            listed,
            shard=part,
            load=lambda model: load_for_evaluation(model, options),
            on_progress=tracker.on_progress,
            on_pictures=tracker.done,
        )


def _score(
    folder: Path,
    judges: Callable[[], list[Network]],
    reference: Path | None,
    statistics: list[str] | None,
    resamples: int,
    level: float,
) -> dict[str, Any]:
    from sfumato.report.evaluation.evaluation_plan import read_plan
    from sfumato.report.evaluation.protocols import protocol_names, read_protocol
    from sfumato.report.evaluation.reference import read_reference
    from sfumato.report.evaluation.scoring import Settings, pictures_seen, score_run

    plan = read_plan(folder)
    side = read_protocol(plan.protocol).reference_side if plan.protocol in protocol_names() else None
    known = read_reference(
        user_path(reference) if reference is not None else None, statistics_files(statistics), side=side
    )
    loaded = judges()
    with tracking(pictures_seen(plan, loaded, known)) as tracker:
        settings = Settings(resamples=resamples, level=level)
        return score_run(folder, loaded, known, settings, on_pictures=tracker.done)


def _show_scores(document: dict[str, Any], as_json: bool) -> None:
    from sfumato.report.evaluation.curves import available, shown, title

    if as_json:
        write_json(document)
        return
    listed = table("metric", "setting", "pictures", f"score \\[{document['level']:.0%} interval]")
    for metric in available(document):
        for cell in document["cells"]:
            score = shown(cell["scores"][metric])
            listed.add_row(literal(title(metric)), literal(cell["name"]), literal(cell["pictures"]), literal(score))
    stdout_console().print(listed)
