"""Recipes as stage graphs: what was trained from what, on which data, with which options.

The numbers of `v1` are the model card's; what it leaves open has the values of the LDM code's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sfumato.errors import InvalidRequest
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.autoencoder_task import AutoencoderLoss, AutoencoderTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.tasks.noise_levels import NoiseConfig
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

_POCKET_SQUARES = AutoencoderTraining(
    crop=64,
    first_logvar=-6.0,
    # every hue as often as any other: as drawn, yellows and reds prevail, and greens stay grey for thousands of steps
    swap_colours=1.0,
    # one norm group: with few channels, more of them level out the colours they should tell apart
    model=AutoencoderConfig(block_channels=(16, 32, 64, 128), layers_per_block=1, norm_groups=1, sample_size=128),
    # without the coarse term, or at three times the rate, 150 steps find no colours at all
    loss=AutoencoderLoss(l1=1.0, coarse=4.0, edges=0.5, edge_scales=3, kl=3e-4),
    run=RunConfig(
        seed=10,
        steps=2600,
        batch=16,
        precision="bfloat16",
        ema_decay=0.998,
        validate_every=250,
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=1e-4, warmup_steps=100),
    ),
)

_POCKET_WHOLE = replace(
    _POCKET_SQUARES,
    crop=128,
    swap_colours=0.5,
    loss=replace(_POCKET_SQUARES.loss, coarse=2.0, equivariant=0.5),
    run=replace(
        _POCKET_SQUARES.run,
        seed=11,
        steps=3000,
        batch=8,
        ema_decay=0.999,
        optimizer=replace(_POCKET_SQUARES.run.optimizer, schedule="linear", warmup_steps=0),
    ),
)

# The latents stay as they are, so it may go on beside the UNet's training, or after it.
# What the UNet paints has the style's own colours, and errors of a fifth of the latents' deviation or so.
_POCKET_DECODER = replace(
    _POCKET_WHOLE,
    decoder_only=True,
    swap_colours=0.0,
    latent_noise=0.3,
    loss=replace(_POCKET_WHOLE.loss, coarse=0.5, equivariant=0.0),
    run=replace(_POCKET_WHOLE.run, seed=12, steps=2500),
)

_POCKET_TEXT = ClipTextConfig(vocab_size=4000, width=192, hidden=768, layers=3, heads=6)

_POCKET_WORDS = TextTraining(
    text_encoder=_POCKET_TEXT,
    fitted_on=2048,
    run=RunConfig(
        seed=20,
        steps=1200,
        batch=128,
        precision="bfloat16",
        ema_decay=0.99,
        validate_every=200,
        optimizer=OptimizerConfig(
            learning_rate=1e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="linear", weight_decay=0.05
        ),
    ),
)

_POCKET_DRAWINGS = DiffusionTraining(
    # no attention at 16 × 16, where it costs a third of the time
    unet=UNetConfig(
        block_channels=(64, 128, 192),
        attention=(False, True, True),
        heads=(1, 2, 3),
        depth=(1, 1, 1),
        layers_per_block=1,
        context_dim=192,
        norm_groups=16,
        sample_size=16,
    ),
    text_encoder=_POCKET_TEXT,
    text_rate=0.5,
    caption_head=0.01,
    guidance_scale=3.0,  # at v1's 7.5 the colours of so small a model run
    # with plain weights a small UNet ignores the words for thousands of steps
    noise=NoiseConfig(weighting="high_noise", density=0.35, stratified=True),
    run=RunConfig(
        seed=30,
        steps=3100,
        batch=32,
        precision="bfloat16",
        channels_last=False,  # on a CPU torch's group norm is slow there in bfloat16
        ema_decay=0.999,
        validate_every=800,
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), warmup_steps=300),
    ),
)

# A rate that falls to 0 at last is worth thousands of steps; each stage that does is short, and begins anew.
_POCKET_ANNEALED = replace(
    _POCKET_DRAWINGS,
    run=replace(
        _POCKET_DRAWINGS.run,
        seed=32,
        steps=480,
        validate_every=480,
        ema_decay=0.99,
        optimizer=replace(_POCKET_DRAWINGS.run.optimizer, learning_rate=6e-4, warmup_steps=0, schedule="linear"),
    ),
)

_POCKET_SCENES = replace(
    _POCKET_DRAWINGS,
    run=replace(
        _POCKET_DRAWINGS.run,
        seed=31,
        steps=1400,
        validate_every=1000,
        ema_decay=0.998,
        optimizer=replace(_POCKET_DRAWINGS.run.optimizer, learning_rate=7e-4, warmup_steps=200),
    ),
)

_POCKET_SCENES_ANNEALED = replace(
    _POCKET_SCENES,
    run=replace(
        _POCKET_SCENES.run,
        seed=33,
        steps=3600,
        validate_every=600,
        optimizer=replace(_POCKET_SCENES.run.optimizer, warmup_steps=0, schedule="linear"),
    ),
)

# The rate that has fallen to 0 is raised once more, and falls again.
_POCKET_SCENES_AGAIN = replace(
    _POCKET_SCENES_ANNEALED,
    run=replace(
        _POCKET_SCENES_ANNEALED.run,
        seed=34,
        steps=6000,
        optimizer=replace(_POCKET_SCENES_ANNEALED.run.optimizer, warmup_steps=100),
    ),
)

_SCENES = "scenes composed of the emoji set, its training part"
_PAINTED = "scenes composed of one flat style's training part"
_DRAWINGS = "the emoji set's training part in one flat style, as drawn, on white"

POCKET: Recipe = {
    "autoencoder-squares": Stage(data=_SCENES, resolution=64, training=_POCKET_SQUARES),
    "autoencoder-whole": Stage(start="autoencoder-squares", data=_SCENES, resolution=128, training=_POCKET_WHOLE),
    "autoencoder": Stage(start="autoencoder-whole", data=_PAINTED, resolution=128, training=_POCKET_DECODER),
    "words": Stage(data=_DRAWINGS, resolution=128, training=_POCKET_WORDS),
    "drawings": Stage(start="words", data=_DRAWINGS, resolution=128, training=_POCKET_DRAWINGS),
    "annealed": Stage(start="drawings", data=_DRAWINGS, resolution=128, training=_POCKET_ANNEALED),
    "scenes": Stage(start="annealed", data=_PAINTED, resolution=128, training=_POCKET_SCENES),
    "scenes-annealed": Stage(start="scenes", data=_PAINTED, resolution=128, training=_POCKET_SCENES_ANNEALED),
    "scenes-again": Stage(start="scenes-annealed", data=_PAINTED, resolution=128, training=_POCKET_SCENES_AGAIN),
}


def _larger(stage: Stage, batch: int, rate: float) -> Stage:
    """The stage for a GPU: more samples a step, at another learning rate."""
    run, training = stage.training.run, stage.training
    optimizer = replace(run.optimizer, learning_rate=rate, warmup_steps=min(run.optimizer.warmup_steps, 100))
    resident = not isinstance(training, TextTraining)
    run = replace(
        run,
        batch=batch,
        optimizer=optimizer,
        channels_last=True,
        resident=resident,
        workers=2 if resident else 4,
        validate_every=500,
    )
    return replace(stage, training=replace(training, run=run))


# The same networks. How many steps each stage has is decided by the time there is (`train.pocket`).
POCKET_GPU: Recipe = {
    "autoencoder-squares": _larger(POCKET["autoencoder-squares"], 128, 2e-3),
    "autoencoder-whole": _larger(POCKET["autoencoder-whole"], 64, 2e-3),
    "words": _larger(POCKET["words"], 512, 2e-3),
    "drawings": _larger(POCKET["drawings"], 512, 2e-3),
    "annealed": _larger(POCKET["annealed"], 512, 1.2e-3),
    "scenes": _larger(POCKET["scenes"], 512, 1.5e-3),
    "scenes-annealed": _larger(POCKET["scenes-annealed"], 512, 1.5e-3),
    "autoencoder": _larger(POCKET["autoencoder"], 64, 1e-3),
}

# How much of the time each stage gets, where the time is what's given.
GPU_SHARES: Mapping[str, float] = {
    "autoencoder-squares": 0.08,
    "autoencoder-whole": 0.12,
    "words": 0.02,
    "drawings": 0.16,
    "annealed": 0.04,
    "scenes": 0.2,
    "scenes-annealed": 0.2,
    "autoencoder": 0.12,
}

_PAINTED_IN_ALL = "scenes composed of the emoji set, its training part, as the diffusion model sees one style"


def _again(stage: Stage) -> Stage:
    """The autoencoder's stage on a model whose latents have a deviation of 5.5, that of the scaling factor."""
    training = stage.training
    assert isinstance(training, AutoencoderTraining)
    loss = replace(training.loss, kl=1e-5, equivariant=0.25 if training.loss.equivariant else 0.0)
    run = replace(training.run, optimizer=replace(training.run.optimizer, warmup_steps=100))
    noise = 1.0 if training.latent_noise else 0.0
    return replace(stage, training=replace(training, loss=loss, latent_noise=noise, run=run))


def _recommending(guidance: float, stage: Stage) -> Stage:
    """The surer a model has become of its answers, the less guidance it stands."""
    training = stage.training
    assert isinstance(training, DiffusionTraining)
    return replace(stage, training=replace(training, guidance_scale=guidance))


# A model goes on learning, its encoder first: the diffusion model finds its way in latents that have changed a little.
POCKET_GPU_AGAIN: Recipe = {
    "autoencoder-whole": replace(
        _again(_larger(POCKET["autoencoder-whole"], 256, 1e-3)), start=MODEL, data=_PAINTED_IN_ALL
    ),
    "scenes-again": replace(_recommending(1.5, _larger(POCKET["scenes-again"], 2048, 2e-3)), start=MODEL),
    "autoencoder": _again(_larger(POCKET["autoencoder"], 256, 1e-3)),
}

GPU_AGAIN_SHARES: Mapping[str, float] = {"autoencoder-whole": 0.19, "scenes-again": 0.48, "autoencoder": 0.08}

RECIPES: Mapping[str, Recipe] = {
    "v1": V1,
    "pocket": POCKET,
    "pocket-gpu": POCKET_GPU,
    "pocket-gpu-again": POCKET_GPU_AGAIN,
}
"""By name."""

SHARES: Mapping[str, Mapping[str, float]] = {"pocket-gpu": GPU_SHARES, "pocket-gpu-again": GPU_AGAIN_SHARES}
"""Of the recipes whose steps the time decides; what is left of it is for drawing and encoding."""


def lineage(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The stages that lead to `name`, the first one first, `name` last. `InvalidRequest` for one that isn't there."""
    if name not in recipe:
        raise InvalidRequest(f"no stage {name!r}: there are {', '.join(recipe)}")
    start = recipe[name].start
    return (name,) if start in (None, MODEL) else (*lineage(recipe, start), name)
