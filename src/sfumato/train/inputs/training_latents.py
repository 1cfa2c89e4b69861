"""What the diffusion model learns from, as latents: pictures encoded into the run's folder, or encoded before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.buckets import Bucket, bucket_of, make_buckets
from sfumato.data.samples import Dataset, Subset, spread
from sfumato.data.transforms import Preparation
from sfumato.errors import DataError
from sfumato.files import make_folder
from sfumato.models.autoencoder import Autoencoder
from sfumato.progress import Cancellation, OnProgress
from sfumato.train.encoding.encode_dataset import encode_moments
from sfumato.train.inputs.encoded_latents import (
    BucketedLatents,
    LatentDataset,
    SomeLatents,
    StoredLatents,
    open_latents,
)
from sfumato.train.inputs.training_data import MOST_HELD_OUT, DataConfig, open_pictures, split, warn_of_few
from sfumato.train.run_folder import LATENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents:
    """The samples to learn from, and those that validation looks at."""

    training: LatentDataset
    held_out: LatentDataset


def is_encoded(folder: Path) -> bool:
    """Whether a folder holds what `sfumato data encode` makes."""
    return any(folder.glob("moments-*.safetensors"))


def encoded_before(folder: Path, config: DataConfig, autoencoder: Autoencoder) -> Latents:
    """The latents in a folder. `DataError` where another autoencoder made them or a caption is missing."""
    stored = open_latents(folder, autoencoder)
    kept, apart = split(len(stored), config.held_out)
    training = SomeLatents(stored, kept)
    if not len(apart):
        warn_of_few()
        return Latents(training=training, held_out=_spread(training))
    return Latents(training=training, held_out=_spread(SomeLatents(stored, apart)))


def encoded_now(
    folder: Path,
    config: DataConfig,
    autoencoder: Autoencoder,
    run: Path,
    *,
    side: int,
    multiple: int | None = None,
    seed: int,
    on_progress: OnProgress,
    cancellation: Cancellation,
) -> Latents:
    """The pictures in `folder` as latents of `side` pixels, encoded into the folder of the run, where they stay.

    With `multiple` those that are trained on keep their shapes as far as sides of such multiples allow; those held out
    are squares all the same. Stopped or killed, it goes on where it was. Raises as `open_pictures` and
    `encode_moments` do, and `DataError` where all of several shapes are trained on.
    """
    pictures = open_pictures(folder, config, seed)

    def encoded(dataset: Dataset, name: str, width: int, height: int) -> StoredLatents:
        make_folder(run / LATENTS)
        moments = encode_moments(
            dataset,
            autoencoder,
            run / LATENTS / name,
            preparation=Preparation(width=width, height=height),
            on_progress=on_progress,
            cancellation=cancellation,
        )
        return StoredLatents(moments)

    if multiple is not None:
        if pictures.known:
            raise DataError("pictures of several shapes need some held out: give more of them, or set buckets to false")
        groups = by_bucket(pictures.training, make_buckets(side, multiple=multiple))
        parts = [
            encoded(Subset(pictures.training, indices), f"{bucket.width}x{bucket.height}", bucket.width, bucket.height)
            for bucket, indices in groups.items()
        ]
        training: LatentDataset = BucketedLatents(parts)
    else:
        training = encoded(pictures.training, "training", side, side)
    if pictures.known:
        return Latents(training=training, held_out=_spread(training))
    some = Subset(pictures.held_out, spread(len(pictures.held_out), MOST_HELD_OUT))
    return Latents(training=training, held_out=encoded(some, "held-out", side, side))


def by_bucket(dataset: Dataset, buckets: Sequence[Bucket]) -> dict[Bucket, list[int]]:
    """The samples' numbers by the bucket nearest to their pictures' shapes; buckets without any are left out."""
    groups: dict[Bucket, list[int]] = {}
    for index in range(len(dataset)):
        width, height = dataset.sample(index).picture.size
        groups.setdefault(bucket_of(width, height, buckets), []).append(index)
    return {bucket: groups[bucket] for bucket in buckets if bucket in groups}


def check_shape(latents: LatentDataset, channels: int, side: int) -> None:
    """Raise `DataError` unless the first sample is of that many channels and cells a side."""
    shape = tuple(latents.latents(0).mean.shape)
    if shape != (channels, side, side):
        raise DataError(
            f"the latents are {shape[0]}×{shape[1]}×{shape[2]}, the UNet's are {channels}×{side}×{side}: "
            f"encode the pictures at another size, or set unet.sample_size"
        )


def _spread(latents: LatentDataset) -> SomeLatents:
    return SomeLatents(latents, spread(len(latents), MOST_HELD_OUT))
