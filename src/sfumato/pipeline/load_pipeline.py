"""From a model's name to a pipeline."""

from __future__ import annotations

from pathlib import Path

from sfumato.modelfiles.load_options import LoadOptions
from sfumato.modelfiles.model_library import resolve
from sfumato.pipeline.model import load_model
from sfumato.pipeline.pipeline import Pipeline
from sfumato.progress import OnProgress, ignore
from sfumato.runtime import resolve_device, resolve_dtype
from sfumato.safety.policy import Policy


def load_pipeline(
    model: str | Path = "pocket",
    *,
    device: str = "auto",
    dtype: str = "auto",
    vae: str | Path | None = None,
    ema: bool = True,
    variant: str | None = None,
    engine: str = "auto",
    memory: str = "auto",
    vae_tiling: str | None = None,
    safety: Policy = "flag",
    watermark: bool = True,
    batch_size: int | None = None,
    token: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    on_progress: OnProgress = ignore,
) -> Pipeline:
    """Load a model by name ("pocket", "v1-4", one you added), path (folder, `.safetensors`, `.ckpt`) or Hub id.

    `safety` is what happens to pictures that the checker flags, `watermark` whether they get the invisible mark; the
    rest is as in `LoadOptions`. Raises `InvalidRequest`, `ModelNotFound`, `HubError`, `CheckpointError`,
    `InvalidConfig`, `MissingExtra` or `OutOfMemory`.
    """
    options = LoadOptions(
        device=device,
        dtype=dtype,
        vae=vae,
        ema=ema,
        variant=variant,
        engine=engine,
        memory=memory,
        vae_tiling=vae_tiling,
        batch_size=batch_size,
        token=token,
        revision=revision,
        offline=offline,
    )
    return load_with(options, model, safety=safety, watermark=watermark, on_progress=on_progress)


def load_with(
    options: LoadOptions,
    model: str | Path,
    *,
    safety: Policy = "flag",
    watermark: bool = True,
    on_progress: OnProgress = ignore,
) -> Pipeline:
    """Load a model as `load_pipeline` does, with its options as one object. Raises the same."""
    resolve_dtype(options.dtype, resolve_device(options.device))  # refused before anything is downloaded
    location = resolve(
        model,
        token=options.token,
        revision=options.revision,
        offline=options.offline,
        variant=options.variant,
        on_progress=on_progress,
    )
    loaded = load_model(location.path, options, name=location.name, on_progress=on_progress)
    return Pipeline(loaded, safety=safety, watermark=watermark, batch_size=options.batch_size)
