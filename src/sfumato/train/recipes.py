"""Recipes as stage graphs: what was trained from what, on which data, with which options.

The numbers of `v1` are the model card's; what it leaves open has the values of the LDM code's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sfumato.errors import InvalidRequest
from sfumato.models.unet_config import UNetConfig
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.tasks.text_task import TextTraining

Training = AutoencoderTraining | TextTraining | DiffusionTraining

MODEL = "model"  # as a stage's start: no stage, but the model that the recipe goes on from


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training run. It starts from the averaged weights of the stage named by `start`, from the model that is
    given (`MODEL`), or from scratch."""

    start: str | None = None
    data: str
    resolution: int
    training: Training

    @property
    def samples(self) -> int:
        """Pictures seen."""
        return self.training.run.steps * self.training.run.batch


Recipe = Mapping[str, Stage]

_V1_RUN = RunConfig(
    batch=2048,  # 32 machines × 8 devices × 4 samples × 2 accumulated
    accumulate=2,
    clip_norm=0.0,
    ema_decay=0.9999,
    optimizer=OptimizerConfig(kind="adamw", learning_rate=1e-4, warmup_steps=10_000, schedule="constant"),
)


def _v1(steps: int, data: str, *, resolution: int = 512, start: str | None = None, dropped: float = 0.0) -> Stage:
    training = DiffusionTraining(
        run=replace(_V1_RUN, steps=steps), unet=UNetConfig(sample_size=resolution // 8), caption_dropout=dropped
    )
    return Stage(start=start, data=data, resolution=resolution, training=training)


_IMPROVED = "laion-improved-aesthetics: at least 512 x 512, aesthetics above 5.0, watermark probability below 0.5"

V1: Recipe = {
    "v1-1-256": _v1(237_000, "laion2B-en", resolution=256),
    "v1-1": _v1(194_000, "laion-high-resolution: at least 1024 x 1024", start="v1-1-256"),
    "v1-2": _v1(515_000, _IMPROVED, start="v1-1"),
    "v1-3": _v1(195_000, _IMPROVED, start="v1-2", dropped=0.1),
    "v1-4": _v1(225_000, "laion-aesthetics v2 5+", start="v1-2", dropped=0.1),
}


def lineage(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The stages that lead to `name`, the first one first, `name` last. `InvalidRequest` for one that isn't there."""
    if name not in recipe:
        raise InvalidRequest(f"no stage {name!r}: there are {', '.join(recipe)}")
    start = recipe[name].start
    return (name,) if start in (None, MODEL) else (*lineage(recipe, start), name)
