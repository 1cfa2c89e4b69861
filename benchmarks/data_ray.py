"""Encode the same pictures here and on Ray: the bytes have to be the same, and how long each took.

    SFUMATO_SAMPLES=128 python -m benchmarks data_ray

Needs the extra `ray`. Most of Ray's time on a small set is its start; how it scales shows on several machines only.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfumato.data.samples import Record, Sample
from sfumato.data.transforms import Preparation
from sfumato.errors import DataError
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.train.encoding.encode_dataset import encode_moments
from sfumato.train.encoding.encode_on_ray import encode_on_ray

CONFIG = AutoencoderConfig(block_channels=(16, 32, 64, 128), layers_per_block=1, norm_groups=1, sample_size=128)
SQUARE = Preparation(width=128, height=128)
ACTORS = 2


@dataclass(frozen=True, slots=True)
class Noise:
    """Pictures of noise; number `broken` can't be read."""

    count: int
    broken: int = -1

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Record:
        return Record(key=str(index), captions=(f"noise {index}",), fields={})

    def sample(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError(f"sample {index} is damaged")
        pixels = np.random.default_rng(index).integers(0, 256, (128, 128, 3), np.uint8)
        return Sample(key=str(index), captions=(f"noise {index}",), fields={}, picture=Image.fromarray(pixels))


def main() -> None:
    if importlib.util.find_spec("ray") is None:
        print("left out: pip install 'sfumato[ray]'")
        return
    torch.set_num_threads(1)
    pictures = Noise(int(os.environ.get("SFUMATO_SAMPLES", "128")))
    torch.manual_seed(0)
    autoencoder = Autoencoder(CONFIG)
    with tempfile.TemporaryDirectory() as work:
        contents = []
        for name, write in (("here", None), ("ray", encode_on_ray(actors=ACTORS, device="cpu", workers=1))):
            began = time.perf_counter()
            folder = Path(work, name)
            encode_moments(pictures, autoencoder, folder, preparation=SQUARE, samples_per_part=32, write=write)
            print(f"{name}: {len(pictures)} pictures in {time.perf_counter() - began:.1f} s")
            contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
        try:
            write = encode_on_ray(actors=1, device="cpu", workers=1)
            encode_moments(Noise(16, broken=7), autoencoder, Path(work, "broken"), preparation=SQUARE, write=write)
        except DataError as error:
            print(f"as it should be: {error}")
        else:
            raise SystemExit("a damaged sample went unnoticed")
    if contents[0] != contents[1]:
        raise SystemExit("Ray made other bytes")
    print("the same bytes")


if __name__ == "__main__":
    main()
