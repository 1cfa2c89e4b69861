"""Prompts from a data set's captions, and its pictures as the reference to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.counter_rng import Stream
from sfumato.data.open_dataset import open_dataset
from sfumato.data.samples import Dataset
from sfumato.errors import InvalidRequest
from sfumato.files import plain_name
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.saving import save_picture
from sfumato.pocket.dataset.emoji import evenly, open_emoji
from sfumato.pocket.dataset.scenes import SceneSet
from sfumato.pocket.training.pocket_recipes import MIX, STYLES
from sfumato.report.evaluation.prompt_list import Prompt, PromptList, pinned


def held_out_scenes(folder: Path, count: int, seed: int) -> SceneSet:
    """Scenes of the emoji set in `folder`, composed as the embedded model's are, all of combinations that its training
    never shows."""
    emoji = open_emoji(folder)
    return SceneSet(
        emoji=emoji, subjects=emoji.split("train", STYLES), seed=seed, length=count, mix=MIX, part="held-out"
    )


def label_prompts(folder: Path, count: int) -> tuple[PromptList, Dataset, list[int]]:
    """The names of `count` subjects drawn evenly from all that the embedded model was trained on, the emoji set in
    `folder`, and which of its samples they are."""
    emoji = open_emoji(folder)
    chosen = evenly(emoji.split("train", STYLES), count)
    prompts = [Prompt(text=s.noun.single, fields={"key": s.key, "label": s.label, "group": s.group}) for s in chosen]
    return pinned(prompts), emoji, [subject.index for subject in chosen]


def dataset_at(folder: Path) -> Dataset:
    """The data set in a folder; the emoji set with captions made of its labels."""
    dataset = open_dataset(folder)
    return open_emoji(folder) if "codepoint" in dataset.record(0).fields else dataset


def caption_prompts(dataset: Dataset, count: int, seed: int) -> tuple[PromptList, list[int]]:
    """One caption each of `count` samples drawn at random, with all that is known of them, and which samples they are.

    `InvalidRequest` where the set is smaller than that.
    """
    if not 1 <= count <= len(dataset):
        raise InvalidRequest(f"{count} prompts were asked for: the data set has {len(dataset)} samples")
    chosen = [int(i) for i in np.random.RandomState(seed).permutation(len(dataset))[:count]]
    prompts = []
    for index in chosen:
        record = dataset.record(index)
        caption = Stream("evaluation prompt", seed, record.key).choice(record.captions)
        prompts.append(Prompt(text=caption, fields={"key": record.key, **record.fields}))
    return pinned(prompts), chosen


def save_pictures(dataset: Dataset, indices: list[int], folder: Path, *, side: int | None) -> None:
    """The samples' pictures as numbered PNG files, over white; `side` resizes them. Nothing is overwritten."""
    plain_name(folder.name, what="folder")
    folder.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(indices):
        save_picture(reference_picture(dataset, index, side), folder / f"{number:06d}.png")


def reference_picture(dataset: Dataset, index: int, side: int | None) -> Pixels:
    """A sample's picture (H, W, 3) over white, resized to a square by Lanczos where `side` says so."""
    picture = dataset.sample(index).picture
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if side is not None and picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture)
