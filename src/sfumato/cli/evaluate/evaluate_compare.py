"""`sfumato evaluate compare`: the same seeds in two ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.evaluate.evaluate_options import Clip, EfficientNet, network_option
from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json
from sfumato.cli.terminal.progress_bar import tracking
from sfumato.errors import InvalidRequest
from sfumato.files import user_path


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, or a folder of pictures.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, or the same.")],
    change_a: Annotated[
        list[str] | None, typer.Option("--a", metavar="FIELD=VALUE", help="What A does otherwise.")
    ] = None,
    change_b: Annotated[
        list[str] | None, typer.Option("--b", metavar="FIELD=VALUE", help="What B does: steps=20, dtype=bfloat16…")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="A list of prompts.")] = None,
    count: Annotated[int, typer.Option("--count", "-c", metavar="N", help="Prompts, at most.")] = 16,
    steps: Annotated[int, typer.Option("--steps", "-S", metavar="N", help="Of both, unless changed.")] = 50,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the first prompt; the next ones count up.")] = 0,
    clip: Clip = None,
    efficientnet: EfficientNet = False,
    least_psnr: Annotated[float | None, network_option(metavar="DB", help="Exit code 1 where a pair has less.")] = None,
    as_json: Json = False,
) -> None:
    """Paint the same seeds in two ways, or take two folders: PSNR, SSIM, perceptual distance, CLIP agreement.

    sfumato evaluate compare pocket pocket --b dtype=bfloat16 --prompts prompts.jsonl --least-psnr 30
    """
    from sfumato.report.evaluation.comparing import compare as compared
    from sfumato.report.evaluation.comparing import images_of_side, parse_side, summary
    from sfumato.report.evaluation.prompt_list import read_prompts

    first, second = parse_side(a, change_a or ()), parse_side(b, change_b or ())
    models = [side for side in (first, second) if side.folder is None]
    if models and prompts is None:
        raise InvalidRequest("give what to paint with --prompts FILE: a prompt a line")
    texts = read_prompts(user_path(prompts)).first(count).texts if prompts is not None else []
    with tracking(len(texts) * len(models)) as tracker:
        (pictures_a, seconds_a), (pictures_b, seconds_b) = (
            images_of_side(side, texts, {"steps": steps}, seed=seed, on_pictures=tracker.done)
            for side in (first, second)
        )
    perceptual = None
    if efficientnet:
        from sfumato.models.efficientnet import packaged_weights
        from sfumato.train.losses.efficientnet_distance import load_efficientnet

        perceptual = load_efficientnet(packaged_weights())
    embedder = None
    if clip is not None:
        from sfumato.report.features.clip_features import ClipFeatures

        embedder = ClipFeatures(user_path(clip))
    matching = texts if len(texts) == len(pictures_a) else None
    numbers = compared(pictures_a, pictures_b, perceptual=perceptual, clip=embedder, prompts=matching)
    found = summary(numbers)
    if as_json:
        seconds = {"a": round(seconds_a, 4), "b": round(seconds_b, 4)}
        write_json({"pairs": len(pictures_a), "seconds_each": seconds, "summary": found, "each": _plain(numbers)})
    else:
        shown = table("metric", "mean", "median", "least", "most", title=f"{len(pictures_a)} pairs")
        for name, values in found.items():
            shown.add_row(literal(name), *(literal("∞" if v is None else f"{v:.4g}") for v in values.values()))
        stdout_console().print(shown)
    if least_psnr is not None and min(numbers["psnr"]) < least_psnr:
        raise typer.Exit(1)


def _plain(numbers: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """JSON has no infinity: the PSNR of equal pictures is null."""
    return {name: [None if value == float("inf") else value for value in values] for name, values in numbers.items()}
