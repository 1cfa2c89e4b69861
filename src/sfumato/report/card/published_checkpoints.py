"""Facts of the published checkpoints v1-1 … v1-4: what they share, and each one's stages from the recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfumato.errors import InvalidRequest
from sfumato.modelfiles.model_library import ALIASES
from sfumato.report.card.card_facts import SCRATCH, CardFacts, TrainingStage, read_facts
from sfumato.report.evaluation.published_curves import published_curves
from sfumato.train.recipes import V1, Stage, lineage
from sfumato.train.tasks.diffusion_task import DiffusionTraining

_SHARED = Path(__file__).parent / "facts" / "v1.toml"
PUBLISHED = ("v1-1", "v1-2", "v1-3", "v1-4")


def published_facts(name: str) -> CardFacts:
    """The facts of "v1-1" … "v1-4". Raises `InvalidRequest` for another name."""
    if name not in PUBLISHED:
        raise InvalidRequest(f"no facts of {name[:60]!r} are known here: there are those of {', '.join(PUBLISHED)}")
    stages = [stage for stage in lineage(V1, name) if stage != name]
    return replace(
        read_facts(_SHARED),
        name=f"Stable Diffusion {name}",
        base_model=ALIASES.get(V1[name].start or ""),
        curve=published_curves()[name],
        training=tuple(_stage(stage, V1[stage]) for stage in (*stages, name)),
    )


def misuse_of_any() -> tuple[str, ...]:
    """What is misuse of any model that makes pictures, whatever its makers say."""
    return read_facts(_SHARED).misuse


def published_name(hub_id: str | None) -> str | None:
    """The short name: "v1-4" for "CompVis/stable-diffusion-v1-4"; None for any other model."""
    return next((name for name in PUBLISHED if ALIASES[name] == hub_id), None)


def _stage(name: str, stage: Stage) -> TrainingStage:
    assert isinstance(stage.training, DiffusionTraining)
    return TrainingStage(
        name=name,
        start=stage.start or SCRATCH,
        steps=stage.training.run.steps,
        batch=stage.training.run.batch,
        resolution=stage.resolution,
        data=stage.data,
        text_dropped=stage.training.caption_dropout,
    )
