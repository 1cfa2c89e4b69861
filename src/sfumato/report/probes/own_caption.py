"""Whether pictures find their own captions among others: CLIP's retrieval, as a test of what was generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.report.metrics.feature_sets import feature_set, same_width, unit_rows

KS = (1, 5)


def ranks(pictures: NDArray[Any], captions: NDArray[Any], texts: Sequence[str], among: int) -> NDArray[np.intp]:
    """How many other captions fit each picture better than its own (N,); 0: its own is first.

    Embeddings (N, D) of pictures and of their captions, whose words are `texts`. Each picture is compared with the
    captions of its own group of `among` that follow each other, those of a remainder with the last `among`; captions of
    the same words count once. A tie is lost. `InvalidRequest` where they don't pair up or there is nothing to choose
    from.
    """
    rows, words = unit_rows(feature_set(pictures)), unit_rows(feature_set(captions, "captions"))
    same_width(rows, words)
    if not len(rows) == len(words) == len(texts):
        raise InvalidRequest(f"{len(rows)} pictures and {len(words)} captions: give one for each")
    if among < 2:
        raise InvalidRequest(f"one caption among {among}: ask for 2 or more")
    found = []
    for start in range(0, len(rows), among):
        stop = min(start + among, len(rows))
        asked, choices = range(start, stop), range(max(stop - among, 0), stop)
        places = {texts[i]: i for i in reversed(choices)}  # words: where they first come
        if len(places) < 2:
            raise InvalidRequest(f"all captions to choose from are {texts[start][:60]!r}: give two different ones")
        similar = rows[asked] @ words[list(places.values())].T
        own = similar[np.arange(len(asked)), [list(places).index(texts[i]) for i in asked]]
        found.append((similar >= own[:, None]).sum(axis=1) - 1)
    return np.concatenate(found)


def hits(pictures: NDArray[Any], captions: NDArray[Any], texts: Sequence[str], among: int) -> dict[int, int]:
    """How many of the pictures (N, D) have their own caption among the first k, by k = 1 and 5: `ranks`, counted."""
    found = ranks(pictures, captions, texts, among)
    return {k: int((found < k).sum()) for k in KS}
