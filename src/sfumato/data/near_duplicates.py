"""Pictures that look alike, found by a perceptual hash."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.transforms import on_background
from sfumato.errors import InvalidRequest

BITS = 64
_SIDE = 32  # pixels the picture is reduced to
_KEPT = 8  # lowest frequencies a side

Hash = int


def perceptual_hash(picture: Image.Image) -> Hash:
    """64 bits that scaling, compression and slight changes of brightness hardly alter (pHash, Zauner 2010).

    The picture on white, in gray, reduced to 32×32; of its cosine transform the 8×8 lowest frequencies, each compared
    with their median.
    """
    gray = on_background(picture).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    lowest = (_COSINES @ np.asarray(gray, np.float64) @ _COSINES.T).ravel()
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(a: Hash, b: Hash) -> int:
    """The number of bits in which two hashes differ."""
    return (a ^ b).bit_count()


def without_near_duplicates(hashes: Sequence[Hash], most: int) -> list[int]:
    """The numbers of those that differ by more than `most` bits from every earlier one kept, in order.

    Exact, and not quadratic unless many are alike: of most + 1 bands of bits two hashes that close agree in one, so
    that only those need be compared (Manku, Jain and Das Sarma 2007). Raises `InvalidRequest` for a `most` no hashes
    can differ by.
    """
    if not 0 <= most < BITS:
        raise InvalidRequest(f"near-duplicates differ by 0 to {BITS - 1} bits, not {most}")
    edges = [BITS * i // (most + 1) for i in range(most + 2)]
    bands = [(start, (1 << stop - start) - 1) for start, stop in itertools.pairwise(edges)]
    met: list[defaultdict[int, list[Hash]]] = [defaultdict(list) for _ in bands]
    kept = []
    for number, value in enumerate(hashes):
        keys = [value >> start & mask for start, mask in bands]
        if any(distance(value, other) <= most for seen, key in zip(met, keys, strict=True) for other in seen[key]):
            continue
        kept.append(number)
        for seen, key in zip(met, keys, strict=True):
            seen[key].append(value)
    return kept


def _cosines() -> NDArray[np.float64]:
    """The first rows of the cosine transform (DCT-II), (8, 32)."""
    rows, columns = np.arange(_KEPT)[:, None], np.arange(_SIDE)
    return np.cos(np.pi * rows * (2 * columns + 1) / (2 * _SIDE))


_COSINES = _cosines()
