"""What is on the disk: the cache, the model library, the Hub's token, free space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sfumato.doctor.finding import Finding, advice, broken, ok
from sfumato.errors import SfumatoError
from sfumato.modelfiles.library_index import data_dir
from sfumato.modelfiles.model_library import ALIASES, ModelLocation, list_models
from sfumato.user_cache import cache_folder, contents

_GB = 1e9
_NAMED = 8
_LITTLE = 6 * _GB  # a model of v1's size in float32, and some pictures


def storage_findings() -> Iterator[Finding]:
    """Judge what is on the disk; reads folders' entries and files' sizes, and asks no network."""
    yield _cache(cache_folder())
    yield from _library()
    yield _room(data_dir())
    yield _token()


def _cache(folder: Path) -> Finding:
    nearest = _nearest(folder)
    if not os.access(nearest, os.W_OK | os.X_OK):
        what = "make it writable, or set XDG_CACHE_HOME: kernels are compiled anew without it"
        return broken("cache", f"{nearest} can't be written", what)
    parts = ", ".join(f"{name} {size / _GB:.2f} GB" for name, size in contents().items() if size >= 0.005 * _GB)
    return ok("cache", f"{folder}: {parts or 'nearly empty'}")


def _library() -> Iterator[Finding]:
    try:
        models = list_models()
    except SfumatoError as error:
        yield broken("models", str(error), "mend or move the file that is named")
        return
    gone = [model.name for model in models if not model.path.exists()]
    if gone:
        yield advice("models", f"the files of {', '.join(gone)} are gone", f"sfumato models rm {gone[0]}")
    there = [model for model in models if model.path.exists()]
    published = any(model.name in ALIASES or model.hub_id in ALIASES.values() for model in there)
    seen = f"{', '.join(model.name for model in there[:_NAMED])}{'…' if len(there) > _NAMED else ''}"
    yield ok("models", seen if published else f"{seen}; none of the published v1 models (sfumato models pull v1-4)")
    for model in there:
        yield from _weights(model)


def _weights(model: ModelLocation) -> Iterator[Finding]:
    """Tell of weights that can't be opened, or that float32 on a processor has copied; else nothing."""
    import torch

    from sfumato.modelfiles.open_model import open_model
    from sfumato.modelfiles.weight_cache import is_copied, warm_parts

    try:
        with open_model(model.path) as files, warm_parts(files, torch.float32) as warm:
            copied = [name for name, part in files.parts.items() if is_copied(part, torch.float32) and name not in warm]
    except SfumatoError as error:
        yield broken(f"model {model.name}", str(error), f"get it again, or sfumato models rm {model.name}")
        return
    if "unet" in copied and model.source != "embedded":
        what = f"sfumato models warm {model.name}: it then starts faster and in less memory on the processor"
        yield advice(f"model {model.name}", "its weights are converted or copied each time it is loaded", what)


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(_nearest(folder)).free
    seen = f"{free / _GB:.1f} GB free at {folder}"
    if free < _LITTLE:
        return advice("disk", seen, "free some: a model of v1's size takes 4 to 5 GB")
    return ok("disk", seen)


def _token() -> Finding:
    """Tell whether there is a token; never what it is."""
    from huggingface_hub import get_token

    there = get_token() is not None
    return ok("Hub token", "there" if there else "none: gated models ask for one (hf auth login)")


def _nearest(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
