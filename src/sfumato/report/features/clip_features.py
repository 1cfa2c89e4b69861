"""CLIP's embeddings of pictures and texts, by our own models from any CLIP checkpoint in transformers' layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.caption_retrieval import Retriever
from sfumato.pictures.pixels import Pixels
from sfumato.report.features.network import Features, identity

SPACE = "clip"


class ClipFeatures:
    """A `Network` with one space, in which texts have a place too. Embeddings have length 1.

    `openai/clip-vit-large-patch14` gives the card's score; a model of `sfumato train clip` is such a folder as well.
    """

    def __init__(self, folder: Path) -> None:
        self._retriever = Retriever.from_folder(folder)
        self.identity = identity(f"clip ({folder.name})", folder, resize="bicubic, the middle cut out (CLIP's own)")

    def features(self, pictures: Sequence[Pixels]) -> Features:
        embeddings = self._retriever.pictures([Image.fromarray(picture) for picture in pictures])
        return {SPACE: embeddings.numpy().astype(np.float32)}

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → embeddings (N, D). What doesn't fit the model's window is cut off."""
        return self._retriever.captions(list(texts)).numpy().astype(np.float32)
