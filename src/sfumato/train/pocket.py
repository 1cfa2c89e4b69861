"""What the embedded model `pocket` is trained on: scenes of the emoji set."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sfumato.data.emoji import open_emoji
from sfumato.data.scenes import SceneMix, SceneSet
from sfumato.data.transforms import on_background

EPOCH = 2**20  # scenes; more than the budget sees, so that none comes twice

# The autoencoder sees mostly what fills the picture: a small object teaches it little but white.
AUTOENCODER_MIX = SceneMix(single=0.7, place=0.05, count=0.1, pair=0.1, on=0.025, riding=0.025, plain=0.5)


def autoencoder_scenes(emoji: Path, seed: int) -> SceneSet:
    """Scenes of the training part of the emoji shards in the folder `emoji`."""
    dataset = open_emoji(emoji)
    return SceneSet(emoji=dataset, subjects=dataset.split("train"), seed=seed, length=EPOCH, mix=AUTOENCODER_MIX)


def held_out_pictures(emoji: Path, count: int) -> list[Image.Image]:
    """Emoji on white that no scene shows, spread over the held-out part: half of pictures, half of labels."""
    dataset = open_emoji(emoji)
    found = []
    for split in ("held-out-picture", "held-out-label"):
        subjects = dataset.split(split)
        wanted = count // 2
        found += [subjects[i * len(subjects) // wanted] for i in range(wanted)]
    return [on_background(dataset.sample(subject.index).picture) for subject in found]
