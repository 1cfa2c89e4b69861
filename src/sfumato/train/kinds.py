"""What can be trained, each kind by a command and a function of its own: one table of what differs between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import InvalidConfig
from sfumato.toml_files import from_values
from sfumato.train.forecast import Plan
from sfumato.train.optim.posthoc_ema import reconstruct
from sfumato.train.runs.run_weights import RunWeights, newest_of_run
from sfumato.train.runs.train_and_publish import Trained
from sfumato.train.runs.train_autoencoder import export_autoencoder, plan_autoencoder, train_autoencoder
from sfumato.train.runs.train_clip import export_clip, plan_clip, train_clip
from sfumato.train.runs.train_diffusion import export_diffusion, plan_diffusion, train_diffusion
from sfumato.train.starting_configs import AUTOENCODERS, CLIPS, DIFFUSIONS
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from sfumato.train.tasks.clip_task import ClipTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.train_state import averaged_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of run: the class of its options, configs to begin with, and how it is trained, planned and exported.

    `replaced` are the parts that an export may replace by others.
    No option has a name in all kinds but those of the run and the data, so that options tell the kind.
    """

    config: type[Any]
    starting_configs: Mapping[str, Any]
    replaced: tuple[str, ...]
    train: Callable[..., Trained]
    plan: Callable[[Any, Path, str | None, str | None], Plan]
    export: Callable[..., None]


KINDS: Mapping[str, Kind] = {
    "autoencoder": Kind(
        config=AutoencoderTraining,
        starting_configs=AUTOENCODERS,
        train=train_autoencoder,
        plan=lambda config, run, tokenizer, start: plan_autoencoder(config),
        replaced=(),
        export=export_autoencoder,
    ),
    "diffusion": Kind(
        config=DiffusionTraining,
        starting_configs=DIFFUSIONS,
        train=train_diffusion,
        plan=lambda config, run, tokenizer, start: plan_diffusion(config, run),
        replaced=("vae", "tokenizer"),
        export=export_diffusion,
    ),
    "clip": Kind(
        config=ClipTraining,
        starting_configs=CLIPS,
        train=train_clip,
        plan=lambda config, run, tokenizer, start: plan_clip(config, run, tokenizer=tokenizer, start=start),
        replaced=("tokenizer",),
        export=export_clip,
    ),
}


def read_run(folder: Path) -> RunWeights:
    """The newest checkpoint of any run of ours; its options tell what it trains.

    `ModelNotFound` where there is none, `InvalidConfig` where the config is none of a kind's.
    """
    saved = newest_of_run(folder)
    for name, kind in KINDS.items():
        with contextlib.suppress(InvalidConfig):
            training = from_values(kind.config, saved.config)
            weights = averaged_weights(saved.tensors)
            return RunWeights(folder=folder, kind=name, training=training, step=saved.step, weights=weights)
    raise InvalidConfig(f"{folder}: its options are none of {', '.join(KINDS)}: it is a run of another version")


def other_average(run: RunWeights, sigma_rel: float) -> tuple[RunWeights, float]:
    """The run with the average of another relative width, from its snapshots, and that average's profile error.

    `InvalidConfig` where it trains an autoencoder; raises as `reconstruct` does.
    """
    if run.kind == "autoencoder":
        raise InvalidConfig(
            f"--sigma-rel {sigma_rel}: an autoencoder's latents get unit variance as its run is finished, which those "
            f"of another average would not have; leave it out"
        )
    found = reconstruct(run.folder, sigma_rel)
    return replace(run, step=found.step, weights=found.weights), found.profile_error


def export_run(
    run: RunWeights,
    folder: Path,
    *,
    vae: str | None = None,
    tokenizer: str | None = None,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write a run's averaged weights as a folder that other programs load: of a diffusion model all of it.

    `vae` names another autoencoder, `tokenizer` is the folder of another one. `InvalidConfig` where the kind has no
    place for one, `ModelNotFound` where one is missing, `OutputError` where the folder can't be written.
    """
    kind, named = KINDS[run.kind], {"vae": vae, "tokenizer": tokenizer}
    for name, value in named.items():
        if value is not None and name not in kind.replaced:
            raise InvalidConfig(f"--{name} {value}: what this run trains has no place for one; leave it out")
    kind.export(run, folder, dtype=dtype, overwrite=overwrite, **{name: named[name] for name in kind.replaced})
