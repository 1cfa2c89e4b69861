"""`sfumato inspect`: the settings in a picture, or what a model is made of."""

from __future__ import annotations

import hashlib
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import facts, literal, stdout_console, table, write_json
from sfumato.errors import InvalidRequest, MissingExtra
from sfumato.modelfiles.hash_cache import WEIGHT_SUFFIXES
from sfumato.user_cache import size_of

if TYPE_CHECKING:
    from sfumato.modelfiles.model_parts import Part

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")


def inspect(
    target: Annotated[str, typer.Argument(metavar="IMAGE|MODEL", help="A picture; or a model by name or path.")],
    as_json: Json = False,
) -> None:
    """Show how a picture was made, whoever's program made it; or a model's layout, parts, sizes and dtypes."""
    path = Path(target)
    suffix = path.suffix.lower()
    is_picture = not path.is_dir() and (suffix in _PICTURES or (path.is_file() and suffix not in WEIGHT_SUFFIXES))
    about = _picture(path) if is_picture else _model(target)
    if as_json:
        write_json(about)
    else:
        _WRITERS[about["kind"]](about)


def show_model(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: Json = False) -> None:
    """Show a model's layout, parts, sizes, dtypes and hash."""
    about = _model(name)
    if as_json:
        write_json(about)
    else:
        _write_model(about)


def _picture(path: Path) -> dict[str, Any]:
    from sfumato.pictures.untrusted_pictures import read_bounded, upright_size, without_pixels
    from sfumato.pipeline.metadata import parameters_of, provenance_of

    data, name = read_bounded(path), str(path)
    width, height = upright_size(data, name)
    about: dict[str, Any] = {
        "kind": "picture",
        "path": name,
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    data = without_pixels(data)
    if (provenance := provenance_of(data, name)) is not None:
        return about | {"program": "sfumato", "settings": json.loads(provenance.to_json())}
    if (other := _other_dialect(data, name)) is not None:
        return about | other
    if (parameters := parameters_of(data, name)) is not None:
        texts = {"prompt": parameters.prompt, "negative_prompt": parameters.negative_prompt}
        ours = parameters.settings.get("Version", "").startswith("sfumato ")
        program = "sfumato" if ours else "A1111's format"
        return about | {"program": program, "settings": texts | dict(parameters.settings)}
    return about | {"program": None, "settings": {}}


def _other_dialect(data: bytes, name: str) -> dict[str, Any] | None:
    """What sd-parsers finds; None without it, or where it finds nothing."""
    from sfumato.pipeline.dialects import settings_of

    try:
        found = settings_of(data, name)
    except MissingExtra:
        return None
    if found is None:
        return None
    own = {"prompt": found.prompt, "negative_prompt": found.negative_prompt, "model": found.model}
    return {"program": found.program, "settings": own | dict(found.settings)}


def _model(target: str) -> dict[str, Any]:
    from sfumato.modelfiles.identity import identity_of
    from sfumato.modelfiles.model_library import resolve
    from sfumato.modelfiles.open_model import open_model

    location = resolve(target, offline=True)
    with open_model(location.path) as files:
        unet, vae = files.unet.module.config, files.vae.module.config
        return {
            "kind": "model",
            "name": location.name,
            "path": str(location.path),
            "layout": files.layout,
            "size": unet.sample_size * vae.factor,
            "prediction": files.scheduler.get("prediction_type", "epsilon"),
            "inpainting": unet.in_channels > vae.latent_channels,
            "safety_checker": files.safety_checker is not None,
            "ema": files.ema,
            "bytes": size_of(location.path),
            "sha256": identity_of(files).sha256,
            "parts": {name: _part(part) for name, part in files.parts.items()},
        }


def _part(part: Part[Any]) -> dict[str, Any]:
    return {
        "parameters": part.parameters,
        "tensors": len(part.entries),
        "dtypes": dict(part.dtypes),
        "file": str(part.checkpoint.path),
    }


def _write_picture(about: dict[str, Any]) -> None:
    if about["program"] is None:
        more = "" if find_spec("sd_parsers") else ": pip install 'sfumato[inspect]' to know those of more programs"
        raise InvalidRequest(f"{about['path']} says nothing about how it was made in a dialect we know{more}")
    settings = dict(about["settings"])
    request = settings.pop("request", {})
    console = stdout_console()
    console.print(
        facts({"picture": about["path"], "size": f"{about['width']}×{about['height']}", "made by": about["program"]})
    )
    console.print(facts({name.replace("_", " "): _plain(value) for name, value in (request | settings).items()}))


def _write_model(about: dict[str, Any]) -> None:
    console = stdout_console()
    traits = [about["prediction"]] + ["inpainting"] * about["inpainting"] + ["EMA weights"] * about["ema"]
    console.print(
        facts(
            {
                "model": about["name"],
                "path": about["path"],
                "layout": about["layout"],
                "pictures": f"{about['size']}×{about['size']}",
                "predicts": ", ".join(traits),
                "safety checker": "its own" if about["safety_checker"] else "none",
                "on disk": readable(about["bytes"]),
                "sha256": about["sha256"],
            }
        )
    )
    parts = table("part", "parameters", "tensors", "dtype", "file")
    for name, part in about["parts"].items():
        dtypes = (
            ", ".join(part["dtypes"])
            if len(part["dtypes"]) < 2
            else ", ".join(f"{count} {dtype}" for dtype, count in part["dtypes"].items())
        )
        parts.add_row(
            f"[bold cyan]{name}[/]",
            f"{part['parameters']:,}",
            str(part["tensors"]),
            dtypes,
            literal(_short(part["file"], about["path"])),
        )
    total = sum(part["parameters"] for part in about["parts"].values())
    parts.add_row("all", f"{total:,}", "", "", "")
    console.print(parts)


def _short(file: str, folder: str) -> str:
    return file.removeprefix(folder).lstrip("/") or Path(file).name


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def readable(size: int) -> str:
    """Bytes as people read them."""
    power = min(int(math.log(max(size, 1), 1000)), 3)
    return f"{size / 1000**power:.{0 if power == 0 else 1}f} {('bytes', 'kB', 'MB', 'GB')[power]}"


_WRITERS = {"picture": _write_picture, "model": _write_model}
