"""The same seeds generated in two ways, or two folders of pictures: how far apart they are. The gate for speed work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from sfumato.errors import InvalidRequest
from sfumato.modelfiles.load_options import LoadOptions, field_kinds, option_value
from sfumato.pictures.pixels import Pixels, picture_to_tensor, psnr
from sfumato.pipeline.field_text import FIELDS, field_value
from sfumato.pipeline.presets import PRESET, with_preset
from sfumato.pipeline.request import Request
from sfumato.report.evaluation.reference import read_folder
from sfumato.report.evaluation.run_pictures import load_for_evaluation
from sfumato.report.features.clip_features import SPACE, ClipFeatures
from sfumato.report.metrics.clip_score import cosines
from sfumato.report.metrics.ssim import ssim

_LOADING = field_kinds(LoadOptions)
_OWN_TO_A_PAIR = ("prompt", "seed", "model", "vae", "token", "init_image", "mask", "width", "height")
_CHANGES = frozenset({*FIELDS, *_LOADING, PRESET} - set(_OWN_TO_A_PAIR))


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two ways: a folder of pictures, or a model with changes to requests and to how it is loaded."""

    source: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    loading: LoadOptions = field(default_factory=LoadOptions)

    @property
    def folder(self) -> Path | None:
        """The folder of pictures this side is, None for a model."""
        path = Path(self.source)
        return path if path.is_dir() and not (path / "unet").is_dir() else None


def parse_side(source: str, changes: Sequence[str]) -> Side:
    """A side from its source and texts such as `steps=20`, `preset=fast` and `dtype=bfloat16`. `InvalidRequest` names a
    wrong one."""
    fields: dict[str, Any] = {}
    loading: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in _CHANGES:
            known = sorted(_CHANGES)
            raise InvalidRequest(f"change {change!r}: write FIELD=VALUE, with a field of {', '.join(known)}")
        if name in _LOADING:
            loading[name] = option_value(_LOADING[name], text)
        else:
            fields[name] = text if name == PRESET else field_value(name, text)
    return Side(source=source, fields=with_preset(fields), loading=LoadOptions(**loading))


def images_of_side(
    side: Side, prompts: Sequence[str], fields: Mapping[str, Any], *, seed: int, on_pictures: Callable[[int], None]
) -> tuple[list[Pixels], float]:
    """The pictures of a side and the seconds each took (0 for a folder). Prompt i has seed + i."""
    if side.folder is not None:
        return read_folder(side.folder), 0.0
    pipeline = load_for_evaluation(side.source, side.loading)
    pictures: list[Pixels] = []
    started = time.perf_counter()
    for index, prompt in enumerate(prompts):
        request = Request(prompt=prompt, seed=seed + index, model=side.source, **{**fields, **side.fields})
        pictures += [np.asarray(image) for image in pipeline.generate(request).images]
        on_pictures(1)
    return pictures, (time.perf_counter() - started) / max(len(prompts), 1)


def compare(
    a: Sequence[Pixels],
    b: Sequence[Pixels],
    *,
    perceptual: nn.Module | None = None,
    clip: ClipFeatures | None = None,
    prompts: Sequence[str] | None = None,
) -> dict[str, list[float]]:
    """Numbers for each pair: `psnr` (dB, infinite where equal), `ssim`, `perceptual` (EfficientNet's features, 0 where
    equal), `clip-agreement` (cosine of the two embeddings), `clip-score-change` (B's minus A's, with prompts).

    `InvalidRequest` for different numbers or sizes of pictures.
    """
    if len(a) != len(b) or not a:
        raise InvalidRequest(f"{len(a)} and {len(b)} pictures don't pair up: give as many of each")
    found = {"psnr": [psnr(x, y) for x, y in zip(a, b, strict=True)]}
    found["ssim"] = [ssim(x, y) for x, y in zip(a, b, strict=True)]
    if perceptual is not None:
        found["perceptual"] = [_distance(perceptual, x, y) for x, y in zip(a, b, strict=True)]
    if clip is not None:
        first, second = (clip.features(pictures)[SPACE] for pictures in (a, b))
        found["clip-agreement"] = cosines(first, second).tolist()
        if prompts is not None:
            texts = clip.texts(prompts)
            found["clip-score-change"] = (cosines(second, texts) - cosines(first, texts)).tolist()
    return found


def summary(numbers: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float | None]]:
    """Mean, median, least and most of each metric. A mean of PSNRs of which one is infinite is None."""
    return {
        name: {
            "mean": _finite(float(np.mean(values))),
            "median": _finite(float(np.median(values))),
            "least": _finite(min(values)),
            "most": _finite(max(values)),
        }
        for name, values in numbers.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@torch.inference_mode()
def _distance(network: nn.Module, a: Pixels, b: Pixels) -> float:
    first, second = (picture_to_tensor(Image.fromarray(p), p.shape[1], p.shape[0]) for p in (a, b))
    return float(network(first, second)[0])
