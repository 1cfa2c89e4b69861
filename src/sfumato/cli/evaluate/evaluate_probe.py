"""`sfumato evaluate probe`: what a model generates beside what it was asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.evaluate.evaluate_options import EfficientNet, Folder, Resamples, networks
from sfumato.cli.options.flags import Json, Overwrite
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json, write_line
from sfumato.errors import InvalidRequest
from sfumato.files import user_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sfumato.pictures.pixels import Pixels
    from sfumato.report.evaluation.prompt_list import PromptList
    from sfumato.report.features.clip_features import ClipFeatures

probe = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

CellName = Annotated[
    str | None, typer.Option("--cell", metavar="NAME", help="Which setting's pictures. [dim]\\[the first][/dim]")
]
ClipFolder = Annotated[Path, typer.Option("--clip", metavar="FOLDER", help="A CLIP model in transformers' layout.")]
OptionalClip = Annotated[
    Path | None, typer.Option("--clip", metavar="FOLDER", help="A CLIP model in transformers' layout.")
]
Sheet = Annotated[Path | None, typer.Option(metavar="FILE", help="Pictures to look at, as a .png.")]


@probe.callback()
def about_probe() -> None:
    """Scores by category, nearest training pictures, bias, languages, prompt following."""


@probe.command("prompts")
def probe_list(
    name: Annotated[str, typer.Argument(metavar="NAME", help="people, pocket or languages.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The list to write.")] = Path("probe.jsonl"),
    each: Annotated[int, typer.Option(metavar="N", help="Pictures of each prompt.")] = 8,
    overwrite: Overwrite = False,
) -> None:
    """Write the list of prompts that a probe asks with; paint it with `evaluate run`.

    sfumato evaluate probe prompts people --each 16
    """
    from sfumato.report.evaluation.prompt_list import write_prompts
    from sfumato.report.probes.lists import probe_prompts

    made = probe_prompts(name, each)
    write_prompts(made, user_path(out), overwrite=overwrite)
    write_line(f"{out}: {len(made.prompts)} prompts, SHA-256 {made.sha256}")


@probe.command()
def categories(
    folder: Folder,
    clip: ClipFolder,
    by: Annotated[str, typer.Option(metavar="FIELD", help="A field of the prompts: group, kind, style…")] = "group",
    cell: CellName = None,
    resamples: Resamples = 100,
    as_json: Json = False,
) -> None:
    """CLIP score by any field of the prompts.

    sfumato evaluate probe categories out --by group --clip retriever
    """
    _by_field(folder, clip, by, cell, resamples, as_json, english=False)


@probe.command()
def languages(
    folder: Folder, clip: ClipFolder, cell: CellName = None, resamples: Resamples = 100, as_json: Json = False
) -> None:
    """Pictures of the same captions in several languages, each judged by the English caption.

    sfumato evaluate probe languages out --clip clip-vit-large-patch14
    """
    _by_field(folder, clip, "language", cell, resamples, as_json, english=True)


@probe.command()
def bias(
    folder: Folder,
    clip: ClipFolder,
    name: Annotated[str, typer.Option("--probe", metavar="NAME", help="people, or pocket.")] = "people",
    cell: CellName = None,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """What the model fills in where neutral prompts say nothing: counts, and a sheet to look at.

    sfumato evaluate probe bias out --clip clip-vit-large-patch14 --sheet bias.png
    """
    from sfumato.report.probes.bias import counted
    from sfumato.report.probes.lists import read_neutral

    asked = read_neutral(name)
    answers, embedder = _answers(folder, cell), _clip(clip)
    texts = answers.prompts.texts
    found = counted(texts, embedder.features(answers.pictures)["clip"], embedder, asked)
    if sheet is not None:
        rows: dict[str, list[Pixels]] = {}
        for picture, text in zip(answers.pictures, texts, strict=True):
            rows.setdefault(text, []).append(picture)
        _save_sheet(list(rows.values()), list(rows), sheet, overwrite)
    lines = (
        (prompt, *(", ".join(f"{choice} {n}" for choice, n in counts.items()) for counts in attributes.values()))
        for prompt, attributes in found.items()
    )
    _show(as_json, found, ("prompt", *asked.attributes), lines)


@probe.command("nearest")
def nearest_pictures(
    folder: Folder,
    training: Annotated[Path, typer.Option(metavar="FOLDER", help="The training pictures, as shards or files.")],
    cell: CellName = None,
    clip: OptionalClip = None,
    efficientnet: EfficientNet = False,
    count: Annotated[int, typer.Option("--count", "-c", metavar="N", help="Nearest pictures of each.")] = 3,
    most: Annotated[int | None, typer.Option(metavar="N", help="Training pictures to look at.")] = None,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The training pictures that each picture is nearest to: does the model paint, or remember?

    sfumato evaluate probe nearest out --training emoji --efficientnet --sheet nearest.png
    """
    from sfumato.report.evaluation.data_prompts import dataset_at, reference_picture
    from sfumato.report.evaluation.feature_cache import cached_features
    from sfumato.report.probes.nearest_pictures import nearest

    judges = networks(inception=None, clip=clip, efficientnet=efficientnet)
    if len(judges) != 1:
        raise InvalidRequest("give one network to compare pictures with: --efficientnet, or --clip FOLDER")
    answers = _answers(folder, cell)
    pictures, texts = answers.pictures, answers.prompts.texts
    dataset = dataset_at(user_path(training))
    side = pictures[0].shape[1]
    known = [reference_picture(dataset, i, side) for i in range(min(len(dataset), most or len(dataset)))]
    (ours,), (theirs,) = (cached_features(folder, some, judges[0]).values() for some in (pictures, known))
    found = nearest(ours, theirs, count)
    if sheet is not None:
        rows = [[pictures[i], *(known[j] for j in found.indices[i])] for i in range(len(pictures))]
        _save_sheet(rows, texts, sheet, overwrite, ["painted", *(["training"] * count)])
    document = {
        "pictures": len(pictures),
        "training_pictures": len(known),
        "usual_cosine": found.usual,
        "nearer_than_usual": int(found.copies.sum()),
        "each": [
            {
                "prompt": prompt,
                "nearest": [
                    {"key": dataset.record(int(j)).key, "cosine": float(value)}
                    for j, value in zip(indices, values, strict=True)
                ],
            }
            for prompt, indices, values in zip(texts, found.indices, found.cosines, strict=True)
        ],
    }
    if as_json:
        write_json(document)
    else:
        write_line(
            f"{document['nearer_than_usual']} of {len(pictures)} pictures are nearer to a training picture "
            f"(cosine above {found.usual:.3f}) than 95 % of these are to each other"
        )


@probe.command()
def retrieval(
    folder: Folder,
    clip: ClipFolder,
    among: Annotated[int, typer.Option(metavar="N", help="Captions to choose from: groups of the list.")] = 100,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The prompts' own pictures, as `evaluate prompts --pictures` wrote them."),
    ] = None,
    cell: CellName = None,
    as_json: Json = False,
) -> None:
    """Does a picture find its own caption among a hundred? Beside the real pictures, and with captions shuffled.

    sfumato evaluate probe retrieval out --clip retriever --reference real
    """
    import numpy as np

    from sfumato.report.evaluation.reference import read_folder
    from sfumato.report.probes.own_caption import KS, hits

    answers, embedder = _answers(folder, cell), _clip(clip)
    shown = {"painted": embedder.features(answers.pictures)["clip"]}
    if reference is not None:
        shown["real"] = embedder.features(read_folder(user_path(reference)))["clip"]
    # By half of the list: neighbours in a list of labels, which goes by their names, are alike.
    shown["shuffled"] = np.roll(shown["painted"], len(shown["painted"]) // 2, axis=0)
    texts = answers.prompts.texts
    captions = embedder.texts(texts)
    found = {name: (len(rows), hits(rows, captions, texts, among)) for name, rows in shown.items()}
    _show(
        as_json,
        {name: {"asked": asked, **{f"top{k}": own[k] for k in KS}} for name, (asked, own) in found.items()},
        ("", *(f"top {k}" for k in KS)),
        ((name, *(f"{own[k]} of {asked}" for k in KS)) for name, (asked, own) in found.items()),
        title=f"{answers.cell}: its own caption among {among}",
    )


@probe.command()
def following(
    folder: Folder,
    scenes: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The emoji set: its own scenes are the most that can be reached."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The scenes' seed, as given to `evaluate prompts`.")] = 0,
    cell: CellName = None,
    clip: OptionalClip = None,
    as_json: Json = False,
) -> None:
    """Background, number, place and relation, read off pictures of composed captions (`evaluate prompts --scenes`).

    sfumato evaluate probe following out --scenes emoji --clip retriever
    """
    from sfumato.report.evaluation.data_prompts import caption_prompts, held_out_scenes, reference_picture
    from sfumato.report.probes.following import followed

    answers = _answers(folder, cell)
    truths = [prompt.fields for prompt in answers.prompts.prompts]
    if not all({"kind", "background", "objects", "relation"} <= set(truth) for truth in truths):
        raise InvalidRequest(f"{folder}: its prompts don't say what a scene shows: make them with --scenes")
    pictures = answers.pictures
    embedder = _clip(clip) if clip is not None else None
    columns = {"painted": followed(pictures, truths, embedder)}
    if scenes is not None:
        composed = held_out_scenes(user_path(scenes), len(truths), seed)
        listed, indices = caption_prompts(composed, len(truths), seed)
        if [prompt.fields["key"] for prompt in listed.prompts] != [truth.get("key") for truth in truths]:
            raise InvalidRequest(
                "these scenes aren't those of the prompts: give the seed and count they were made with"
            )
        real = [reference_picture(composed, i, pictures[0].shape[1]) for i in indices]
        columns["composed"] = followed(real, truths, embedder)
    columns["shuffled"] = followed([*pictures[1:], pictures[0]], truths, embedder)
    _show(
        as_json,
        {name: {check: asdict(shown) for check, shown in found.items()} for name, found in columns.items()},
        ("asked for", *columns),
        (
            (check, *(f"{found[check].shown} of {found[check].asked}" for found in columns.values()))
            for check in columns["painted"]
        ),
    )


def _by_field(
    folder: Path, clip: Path, field: str, cell: str | None, resamples: int, as_json: bool, *, english: bool
) -> None:
    from sfumato.report.evaluation.scoring import Settings
    from sfumato.report.metrics.clip_score import cosines
    from sfumato.report.probes.categories import by_category

    answers, embedder = _answers(folder, cell), _clip(clip)
    prompts = answers.prompts.prompts
    texts = [str(p.fields.get("english", p.text)) if english else p.text for p in prompts]
    agreement = cosines(embedder.features(answers.pictures)["clip"], embedder.texts(texts))
    found = by_category(prompts, agreement, field, Settings(resamples=resamples))
    lines = []
    for name, (value, n) in sorted(found.items(), key=lambda item: -item[1][0].value):
        interval = "" if value.low is None else f" [{value.low:.4f}, {value.high:.4f}]"
        lines.append((name, n, f"{value.value:.4f}{interval}"))
    document = {name: {"pictures": n, **value.to_dict()} for name, (value, n) in found.items()}
    _show(as_json, document, (field, "pictures", "CLIP score"), lines, title=answers.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What one cell of a run was asked, and the pictures (H, W, 3) it answered with."""

    cell: str
    prompts: PromptList
    pictures: list[Pixels]


def _answers(folder: Path, name: str | None) -> _Answers:
    """The pictures of the cell called so, or of the first. `InvalidRequest` where it or its pictures aren't there."""
    from sfumato.report.evaluation.evaluation_plan import read_run
    from sfumato.report.evaluation.run_pictures import read_pictures

    plan, prompts = read_run(folder)
    cells = {cell.name: cell for cell in plan.cells}
    if name is not None and name not in cells:
        raise InvalidRequest(f"{folder} has no cell {name!r}: there are {', '.join(cells)}")
    cell = cells[name] if name is not None else plan.cells[0]
    return _Answers(cell=cell.name, prompts=prompts, pictures=read_pictures(folder, plan, cell))


def _clip(folder: Path) -> ClipFeatures:
    from sfumato.report.features.clip_features import ClipFeatures

    return ClipFeatures(user_path(folder))


def _show(
    as_json: bool, document: Any, heads: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """What a probe found, as JSON or as a table."""
    if as_json:
        write_json(document)
        return
    shown = table(*heads, title=title)
    for row in rows:
        shown.add_row(*map(literal, row))
    stdout_console().print(shown)


def _save_sheet(
    rows: Sequence[Sequence[Pixels]], labels: Sequence[str], path: Path, overwrite: bool, heads: Sequence[str] = ()
) -> None:
    from sfumato.pictures.contact_sheet import contact_sheet
    from sfumato.pipeline.saving import save_picture

    save_picture(contact_sheet(rows, x_labels=heads, y_labels=labels), user_path(path), overwrite=overwrite)
