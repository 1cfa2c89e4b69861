"""`sfumato data encode`: pictures to the latents' moments that the diffusion model is trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.choices import check_choice
from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking
from sfumato.errors import InvalidRequest

if TYPE_CHECKING:
    from sfumato.data.samples import Dataset
    from sfumato.prompt.tokenizer import Tokenizer

PRECISIONS: Mapping[str, Literal["float32", "bfloat16"]] = {"float32": "float32", "bfloat16": "bfloat16"}
_scenes = partial(typer.Option, rich_help_panel="Composed scenes")
_scale = partial(typer.Option, rich_help_panel="On many machines")


def encode(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of pictures or of shards.")],
    to: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    autoencoder: Annotated[
        str,
        typer.Option(
            "--autoencoder",
            "-a",
            metavar="MODEL",
            help="A model's name or path, a vae folder or file, or a training run's folder.",
        ),
    ] = "pocket",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Pixels a picture is scaled and cut to: 128, or 640x512. [dim]\\[the autoencoder's][/dim]",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures encoded together.")] = 16,
    precision: Annotated[str, typer.Option(metavar="NAME", help="float32, or bfloat16, which is faster.")] = "float32",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    part_samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples a file: what a crash can cost.")
    ] = 8192,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that prepare pictures.")] = 2,
    samples: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Store token ids, by this model's tokenizer.")
    ] = None,
    uncaptioned: Annotated[
        bool, typer.Option("--uncaptioned", metavar="", help="Take pictures without a caption, too.")
    ] = False,
    scenes: Annotated[
        int | None, _scenes(metavar="SEED", help="SRC is the emoji set: compose --samples scenes of it.")
    ] = None,
    held_out: Annotated[bool, _scenes("--held-out", metavar="", help="Combinations kept from training.")] = False,
    on: Annotated[str, _scale(metavar="WHERE", help="here, or ray: a cluster (RAY_ADDRESS).")] = "here",
    actors: Annotated[int, _scale(min=1, metavar="N", help="Autoencoders at work on it.")] = 1,
    as_json: Json = False,
) -> None:
    """Encode pictures once, with their captions, for the training of the diffusion model.

    Stopped or killed, it goes on where it was.

    sfumato data encode photos latents --autoencoder v1-4 --size 512
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("on", on, ("here", "ray"))
    asked = _sides(size) if size else None
    from sfumato.data.transforms import Preparation
    from sfumato.runtime import resolve_device
    from sfumato.train.encoding.encode_dataset import encode_moments
    from sfumato.train.encoding.encode_on_ray import encode_on_ray
    from sfumato.train.runs.autoencoders import load_autoencoder

    dataset = _some(source, samples, uncaptioned) if scenes is None else _composed(source, scenes, samples, held_out)
    network = load_autoencoder(autoencoder)
    width, height = asked or (network.config.sample_size, network.config.sample_size)
    with tracking() as tracker:
        moments = encode_moments(
            dataset,
            network if on == "ray" else network.to(resolve_device(device)),
            to,
            preparation=Preparation(width=width, height=height),
            batch=batch,
            precision=PRECISIONS[precision],
            samples_per_part=part_samples,
            tokenizer=_tokenizer(tokens),
            captions_required=not uncaptioned,
            write=encode_on_ray(actors=actors, device=device, workers=workers) if on == "ray" else None,
            on_progress=tracker.on_progress,
        )
    if as_json:
        write_json({"path": str(to), **moments.manifest})
    else:
        write_line(str(to))


def _sides(text: str) -> tuple[int, int]:
    """Width and height from `128` or `640x512`."""
    found = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip())
    if not found:
        raise InvalidRequest(f"size {text!r:.40} must be one number of pixels, or two: 128, 640x512")
    return int(found[1]), int(found[2] or found[1])


def _some(source: Path, samples: int | None, uncaptioned: bool) -> Dataset:
    """The data set in a folder, or its first samples."""
    from sfumato.data.open_dataset import open_dataset
    from sfumato.data.samples import Subset

    dataset = open_dataset(source, captions_required=not uncaptioned)
    return dataset if samples is None else Subset(dataset, range(min(samples, len(dataset))))


def _composed(source: Path, seed: int, samples: int | None, held_out: bool) -> Dataset:
    from sfumato.pocket.dataset.emoji import open_emoji
    from sfumato.pocket.dataset.scenes import SceneSet

    if samples is None:
        raise InvalidRequest("scenes are endless: say how many with --samples")
    emoji = open_emoji(source)
    part: Literal["train", "held-out"] = "held-out" if held_out else "train"
    return SceneSet(emoji=emoji, subjects=emoji.split("train"), seed=seed, length=samples, part=part)


def _tokenizer(model: str | None) -> Tokenizer | None:
    if model is None:
        return None
    from sfumato.modelfiles.model_library import resolve
    from sfumato.modelfiles.open_model import open_model
    from sfumato.prompt.tokenizer import Tokenizer

    with open_model(resolve(model).path) as files:
        return Tokenizer.from_files(files.tokenizer, folder=files.path)
