"""CLIP models that were tuned on people's choices between pictures: PickScore (Kirstain et al. 2023) and HPSv2
(Wu et al. 2023). Both are ViT-H/14, read by our own models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.caption_retrieval import Prepare, Retriever
from sfumato.modelfiles.open_model import V1
from sfumato.models.clip import ClipConfig
from sfumato.models.open_clip import VIT_H_14, load_open_clip
from sfumato.pictures.pixels import Pixels
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.report.features.network import Features, identity
from sfumato.report.metrics.clip_score import cosines
from sfumato.report.metrics.feature_sets import Floats
from sfumato.safety.checker import MEAN, STD, preprocess


class Preference:
    """A `Network` that says how well a picture would be liked for a prompt. Only scores of one of them compare.

    A folder in transformers' layout is scored as PickScore is: the cosine times the model's own scale. A file in
    open_clip's layout, of shape `config`, is scored as HPSv2 is: by the cosine, of a picture whose longer side is
    resized and whose shorter one is filled up with black. CLIP's vocabulary is v1's. (open_clip repairs broken Unicode
    and HTML in prompts first; here they are taken as they are.)
    """

    def __init__(self, path: Path, *, config: ClipConfig = VIT_H_14) -> None:
        self._prepare: Prepare
        if path.is_dir():
            self.name, resize, self._prepare = path.name, "bicubic, the middle cut out", preprocess
            self._retriever = Retriever.from_folder(path)
            self.scale = float(self._retriever.model.logit_scale.exp())
        else:
            self.name, resize, self._prepare = path.stem, "bicubic, the whole of it, black around it", within
            model = load_open_clip(path, config)
            self._retriever = Retriever(model=model, tokenizer=Tokenizer.from_folder(V1 / "tokenizer"))
            self.scale = 1.0
        self.space = f"preference/{self.name}"
        self.identity = identity(self.space, path, resize=resize)

    def features(self, pictures: Sequence[Pixels]) -> Features:
        images = [Image.fromarray(picture) for picture in pictures]
        return {self.space: self._retriever.pictures(images, prepare=self._prepare).numpy().astype(np.float32)}

    def scores(self, embeddings: NDArray[np.float32], prompts: Sequence[str]) -> Floats:
        """How well each picture, as `features` has it (N, D), would be liked for its prompt: (N,)."""
        texts = self._retriever.captions(list(prompts)).numpy()
        scores: Floats = self.scale * cosines(embeddings, texts)
        return scores


def within(image: Image.Image, side: int) -> Tensor:
    """The whole picture in the middle of a black square, normalised, (3, side, side): as HPSv2 prepares it.

    Its `ResizeMaxSize` resizes in floating point, and by torchvision's default: since version 0.17 with a filter
    against aliasing, as here.
    """
    unit = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255.0  # (3, H, W)
    scale = side / max(image.size)
    if scale != 1.0:
        height, width = (max(round(size * scale), 1) for size in unit.shape[1:])
        unit = F.interpolate(unit[None], (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
    height, width = side - unit.shape[1], side - unit.shape[2]
    unit = F.pad(unit, (width // 2, width - width // 2, height // 2, height - height // 2))
    return (unit - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]
