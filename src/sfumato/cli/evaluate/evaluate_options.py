"""Flags that the commands of `sfumato evaluate` share, and what they make of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.options.flags import FlagValues
from sfumato.errors import InvalidRequest
from sfumato.files import user_path

if TYPE_CHECKING:
    from sfumato.modelfiles.load_options import LoadOptions
    from sfumato.report.evaluation.protocols import Protocol
    from sfumato.report.features.network import Network

network_option = partial(typer.Option, rich_help_panel="Networks (local files)")
grid_option = partial(typer.Option, rich_help_panel="What to paint")
_sure = partial(typer.Option, rich_help_panel="How sure")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The evaluation's folder.")]
Inception = Annotated[
    Path | None, network_option(metavar="FILE", help="pt_inception-2015-12-05-6726825d.pth, for FID.")
]
Clip = Annotated[
    Path | None, network_option(metavar="FOLDER", help="A CLIP model in transformers' layout, for CLIP score and CMMD.")
]
Preferences = Annotated[
    list[Path] | None,
    network_option(
        "--preference", metavar="PATH", help="PickScore's folder, or HPSv2's .pt file; several times for several."
    ),
]
EfficientNet = Annotated[
    bool, network_option("--efficientnet", metavar="", help="EfficientNet-Lite0 from its package.")
]
Reference = Annotated[Path | None, network_option(metavar="FOLDER", help="Real pictures.")]
Statistics = Annotated[
    list[str] | None,
    network_option(
        metavar="SPACE=FILE", help="Published mu and sigma in the place of pictures: inception/pytorch-fid=coco.npz."
    ),
]
Resamples = Annotated[int, _sure(metavar="N", help="For each interval; 0: none.")]
Level = Annotated[float, _sure(metavar="X", help="Of the intervals.")]
Prompts = Annotated[Path | None, grid_option(metavar="FILE", help="A list of `evaluate prompts`.")]
ProtocolName = Annotated[str, grid_option(metavar="NAME", help="card, pocket, or a .toml file's path.")]
Count = Annotated[int | None, grid_option(metavar="N", help="Prompts, if not the protocol's.")]
Guidance = Annotated[str | None, grid_option(metavar="A,B,…", help="Guidance scales, if not the protocol's.")]
Samplers = Annotated[str | None, grid_option(metavar="A,B,…", help="Samplers, if not the protocol's.")]
Steps = Annotated[str | None, grid_option(metavar="A,B,…", help="Steps, if not the protocol's.")]
Examples = Annotated[int, typer.Option(metavar="N", help="Prompts whose pictures the page shows.")]


def loading_options(given: FlagValues) -> LoadOptions:
    """Read how to load the models, from flags, environment and files; torch gets the threads they say."""
    from sfumato.cli.options.settings import read_settings

    settings = read_settings(given).run()
    settings.use_threads()
    return settings.loading


def networks(
    *, inception: Path | None, clip: Path | None, efficientnet: bool, preference: list[Path] | None = None
) -> list[Network]:
    """The networks asked for, loaded. Each raises as its loader does where its file isn't there, and
    `InvalidRequest` is raised where two have one name."""
    made: list[Network] = []
    if inception is not None:
        from sfumato.report.features.inception_features import InceptionFeatures

        made.append(InceptionFeatures(user_path(inception)))
    if efficientnet:
        from sfumato.report.features.efficientnet_features import EfficientNetFeatures

        made.append(EfficientNetFeatures())
    if clip is not None:
        from sfumato.report.features.clip_features import ClipFeatures

        made.append(ClipFeatures(user_path(clip)))
    if preference:
        from sfumato.report.features.pickscore_hps import Preference

        judges = {judge.name: judge for judge in (Preference(user_path(path)) for path in preference)}
        if len(judges) < len(preference):
            raise InvalidRequest("two of --preference have one name: rename one's file or folder")
        made.extend(judges.values())
    return made


def statistics_files(given: list[str] | None) -> dict[str, Path]:
    """Read `space=file` texts as a mapping. Raises `InvalidRequest` for any that isn't one."""
    found = {}
    for text in given or ():
        space, equals, path = text.partition("=")
        if not equals or not space or not path:
            raise InvalidRequest(f"statistics {text!r}: write them as SPACE=FILE, as in inception/clean-fid=coco.npz")
        found[space] = user_path(path)
    return found


def adapted(name: str, *, count: int | None, guidance: str | None, samplers: str | None, steps: str | None) -> Protocol:
    """A named protocol with some of its choices made otherwise, and a note that says so."""
    import dataclasses

    from sfumato.report.evaluation.protocols import read_protocol

    protocol = read_protocol(name)
    changes: dict[str, Any] = {}
    if count is not None:
        changes["prompts"] = count
    if guidance is not None:
        changes["guidance_scales"] = tuple(_numbers(guidance, float, "guidance"))
    if samplers is not None:
        changes["samplers"] = tuple(part.strip() for part in samplers.split(","))
    if steps is not None:
        changes["steps"] = tuple(_numbers(steps, int, "steps"))
    changes = {field: value for field, value in changes.items() if value != getattr(protocol, field)}
    if not changes:
        return protocol
    said = ", ".join(
        f"{field.replace('_', ' ')} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for field, value in changes.items()
    )
    notes = (*protocol.notes, f"Unlike the protocol: {said}.")
    return dataclasses.replace(protocol, **changes, notes=notes)


def _numbers(text: str, kind: type[float] | type[int], what: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequest(f"{what} {text!r}: write numbers with commas between, as in 1.5,3,7.5") from error
