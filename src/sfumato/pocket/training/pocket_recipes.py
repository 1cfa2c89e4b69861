"""The recipes of the embedded model: networks, options, images and words of every stage, and its share of the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.pocket.dataset.scenes import SceneMix
from sfumato.train.recipes import MODEL, Recipe, Stage
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.autoencoder_task import AutoencoderLoss, AutoencoderTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.tasks.noise_levels import NoiseConfig
from sfumato.train.tasks.text_task import TextTraining

EPOCH = 2**20  # scenes; more than the budget sees, so that none comes twice

# The autoencoder sees mostly what fills the picture: a small object teaches it little but white.
AUTOENCODER_MIX = SceneMix(single=0.7, place=0.05, count=0.1, pair=0.1, on=0.025, riding=0.025, plain=0.5)
STYLES = ("twemoji",)

# Each object at one size and place of a kind: so few weights learn seven cells as they are, not their every shift.
MIX = SceneMix(
    single=0.0, filling=0.6, place=0.1, count=0.12, pair=0.15, on=0.015, riding=0.015, plain=0.55, play=False
)

# What has learned its objects learns more of where they stand.
MIX_AGAIN = replace(MIX, filling=0.45, place=0.12, count=0.15, pair=0.2, on=0.04, riding=0.04)

PROMPTS = (
    "a red heart", "a cat face", "a dog face", "a rocket", "a green apple", "flag of Japan", "a horse", "an astronaut",
    "a pizza", "a soccer ball", "a strawberry", "a crown", "a sun", "an angry face", "a fish", "a police car",
    "a key", "a snowman", "a guitar", "a tulip", "a blue heart on a yellow background", "a banana on the left",
    "two cats", "a dog left of a tree",
)  # fmt: skip


_SQUARES = AutoencoderTraining(
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

_WHOLE = replace(
    _SQUARES,
    crop=128,
    swap_colours=0.5,
    loss=replace(_SQUARES.loss, coarse=2.0, equivariant=0.5),
    run=replace(
        _SQUARES.run,
        seed=11,
        steps=3000,
        batch=8,
        ema_decay=0.999,
        optimizer=replace(_SQUARES.run.optimizer, schedule="linear", warmup_steps=0),
    ),
)

# The latents stay as they are, so it may go on beside the UNet's training, or after it.
# What the UNet generates has the style's own colours, and errors of a fifth of the latents' deviation or so.
_DECODER = replace(
    _WHOLE,
    decoder_only=True,
    swap_colours=0.0,
    latent_noise=0.3,
    loss=replace(_WHOLE.loss, coarse=0.5, equivariant=0.0),
    run=replace(_WHOLE.run, seed=12, steps=2500),
)

_TEXT = ClipTextConfig(vocab_size=4000, width=192, hidden=768, layers=3, heads=6)

_WORDS = TextTraining(
    text_encoder=_TEXT,
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

_DRAWINGS = DiffusionTraining(
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
    text_encoder=_TEXT,
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
_ANNEALED = replace(
    _DRAWINGS,
    run=replace(
        _DRAWINGS.run,
        seed=32,
        steps=480,
        validate_every=480,
        ema_decay=0.99,
        optimizer=replace(_DRAWINGS.run.optimizer, learning_rate=6e-4, warmup_steps=0, schedule="linear"),
    ),
)

_SCENES = replace(
    _DRAWINGS,
    run=replace(
        _DRAWINGS.run,
        seed=31,
        steps=1400,
        validate_every=1000,
        ema_decay=0.998,
        optimizer=replace(_DRAWINGS.run.optimizer, learning_rate=7e-4, warmup_steps=200),
    ),
)

_SCENES_ANNEALED = replace(
    _SCENES,
    run=replace(
        _SCENES.run,
        seed=33,
        steps=3600,
        validate_every=600,
        optimizer=replace(_SCENES.run.optimizer, warmup_steps=0, schedule="linear"),
    ),
)

# The rate that has fallen to 0 is raised once more, and falls again.
_SCENES_AGAIN = replace(
    _SCENES_ANNEALED,
    run=replace(
        _SCENES_ANNEALED.run,
        seed=34,
        steps=6000,
        optimizer=replace(_SCENES_ANNEALED.run.optimizer, warmup_steps=100),
    ),
)

_ALL_SCENES = "scenes composed of the emoji set, its training part"
_STYLE_SCENES = "scenes composed of one flat style's training part"
_STYLE_DRAWINGS = "the emoji set's training part in one flat style, as drawn, on white"

POCKET: Recipe = {
    "autoencoder-squares": Stage(data=_ALL_SCENES, resolution=64, training=_SQUARES),
    "autoencoder-whole": Stage(start="autoencoder-squares", data=_ALL_SCENES, resolution=128, training=_WHOLE),
    "autoencoder": Stage(start="autoencoder-whole", data=_STYLE_SCENES, resolution=128, training=_DECODER),
    "words": Stage(data=_STYLE_DRAWINGS, resolution=128, training=_WORDS),
    "drawings": Stage(start="words", data=_STYLE_DRAWINGS, resolution=128, training=_DRAWINGS),
    "annealed": Stage(start="drawings", data=_STYLE_DRAWINGS, resolution=128, training=_ANNEALED),
    "scenes": Stage(start="annealed", data=_STYLE_SCENES, resolution=128, training=_SCENES),
    "scenes-annealed": Stage(start="scenes", data=_STYLE_SCENES, resolution=128, training=_SCENES_ANNEALED),
    "scenes-again": Stage(start="scenes-annealed", data=_STYLE_SCENES, resolution=128, training=_SCENES_AGAIN),
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


# The same networks. How many steps each stage has is decided by the time there is (`pocket_stages`).
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

_ALL_SCENES_AS_SEEN = "scenes composed of the emoji set, its training part, as the diffusion model sees one style"


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
        _again(_larger(POCKET["autoencoder-whole"], 256, 1e-3)), start=MODEL, data=_ALL_SCENES_AS_SEEN
    ),
    "scenes-again": replace(_recommending(1.5, _larger(POCKET["scenes-again"], 2048, 2e-3)), start=MODEL),
    "autoencoder": _again(_larger(POCKET["autoencoder"], 256, 1e-3)),
}

GPU_AGAIN_SHARES: Mapping[str, float] = {"autoencoder-whole": 0.19, "scenes-again": 0.48, "autoencoder": 0.08}

POCKET_RECIPES: Mapping[str, Recipe] = {
    "pocket": POCKET,
    "pocket-gpu": POCKET_GPU,
    "pocket-gpu-again": POCKET_GPU_AGAIN,
}
"""The recipes by name."""

SHARES: Mapping[str, Mapping[str, float]] = {"pocket-gpu": GPU_SHARES, "pocket-gpu-again": GPU_AGAIN_SHARES}
"""The shares of the recipes whose steps the time decides; what is left of it is for drawing and encoding."""
