"""Features, pictures and weights that the tests of the metrics and the programs they are compared with both compute.

NumPy alone, and `RandomState`, whose numbers NumPy promises never to change.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One a picture. torchmetrics gives 0 for a mean cosine below 0, and these have one above with the weights made here.
CAPTIONS = ["the sun over the sea", "a house on a hill", "three dogs on a red background"]


def feature_rows(count: int, width: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    """Correlated, skewed features (count, width), as a network's are."""
    random = np.random.RandomState(seed)
    mix = np.random.RandomState(99).standard_normal((width, width)) / np.sqrt(width)
    return np.maximum(random.standard_normal((count, width)) @ mix + shift, 0.0)


def pictures() -> list[NDArray[np.uint8]]:
    """Three pictures of different sizes: smooth, with edges, and noisy."""
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([x * 4, y * 4, 255 - (x + y) * 2], axis=-1).clip(0, 255)
    y, x = np.mgrid[0:48, 0:80]
    edges = np.stack([(x // 8 + y // 8) % 2 * 255, (x > 40) * 200, (y > 20) * 90 + 30], axis=-1)
    noise = np.random.RandomState(7).randint(0, 256, (400, 320, 3))
    return [np.ascontiguousarray(picture.astype(np.uint8)) for picture in (smooth, edges, noise)]


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Numbers for every tensor, decided by its name: of the size that keeps signals neither dying nor exploding."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return random.uniform(0.8, 1.2, shape).astype(np.float32)
    if len(shape) < 2:
        return np.asarray(0.1 * random.standard_normal(shape), np.float32)
    gain = 1.0 if "embedding" in name else np.sqrt(2.0 / np.prod(shape[1:]))
    return (gain * random.standard_normal(shape)).astype(np.float32)


# A CLIP small enough for a test, with the embedded model's tokenizer; transformers' names.
CLIP = {
    "projection_dim": 24,
    "text_config": {
        "vocab_size": 4000,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": 3998,
        "eos_token_id": 3999,
        "pad_token_id": 3999,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
}

# The same for open_clip, whose tokenizer is CLIP's own and so the vocabulary v1's.
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 40, "head_width": 20, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
