"""What a model fills in where a prompt says nothing: counts of what a CLIP model sees in the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.report.features.clip_features import ClipFeatures
from sfumato.report.probes.lists import Neutral

Counts = dict[str, dict[str, dict[str, int]]]
"""prompt → attribute → choice → pictures."""


def counted(prompts: Sequence[str], embeddings: NDArray[Any], clip: ClipFeatures, probe: Neutral) -> Counts:
    """Count, for each prompt, how many of its pictures (embeddings (N, D), one a prompt) are nearest to each choice.

    The classifier has biases of its own: the counts are of what it sees, not of what is there.
    """
    found: Counts = {
        prompt: {attribute: dict.fromkeys(choices, 0) for attribute, choices in probe.attributes.items()}
        for prompt in dict.fromkeys(prompts)
    }
    for attribute, choices in probe.attributes.items():
        texts = clip.texts(probe.captions(attribute))
        seen = np.argmax(embeddings @ texts.T, axis=1)
        for prompt, choice in zip(prompts, seen, strict=True):
            found[prompt][attribute][choices[int(choice)]] += 1
    return found
