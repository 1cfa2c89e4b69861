"""From a model's name to a pipeline."""

from __future__ import annotations

from pathlib import Path

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

    `vae` is another autoencoder's file or folder; `ema` takes the moving average where a file has it beside the last
    step; `variant` "fp16" prefers half-precision files. `engine` is how the networks run: "auto", "eager" or another
    of `engines.names`; `memory` is how much it may take ("auto", "lean" or "low"), `vae_tiling` how large pictures pass
    the autoencoder (`engines.names.TILINGS`; by default what belongs to the memory mode). `token`, `revision` and
    `offline` are for the Hub. Raises `ModelNotFound`, `HubError`, `CheckpointError`, `InvalidConfig` or `OutOfMemory`.
    """
    target = resolve_device(device)
    location = resolve(model, token=token, revision=revision, offline=offline, variant=variant, on_progress=on_progress)
    loaded = load_model(
        location.path,
        name=location.name,
        device=target,
        dtype=resolve_dtype(dtype, target),
        vae=Path(vae) if vae is not None else None,
        ema=ema,
        variant=variant,
        engine=engine,
        memory=memory,
        vae_tiling=vae_tiling,
        on_progress=on_progress,
    )
    return Pipeline(loaded, safety=safety, watermark=watermark, batch_size=batch_size)
