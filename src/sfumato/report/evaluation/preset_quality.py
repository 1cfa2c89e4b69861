"""What presets give up on a model: the same prompts and seeds by each, side by side, and in numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.pictures.contact_sheet import contact_sheet
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.pipeline import Pipeline
from sfumato.pipeline.presets import PRESETS, with_preset
from sfumato.report.evaluation.comparing import compare
from sfumato.report.features.clip_features import SPACE as CLIP
from sfumato.report.features.clip_features import ClipFeatures
from sfumato.report.features.network import Network
from sfumato.report.metrics.clip_score import cosines
from sfumato.report.metrics.fid import Gaussian, frechet_distance
from sfumato.report.metrics.kid_cmmd import kid

EXACT = "exact"

PROMPTS = ("cat face", "rocket", "red heart", "pizza", "flag of Japan", "tulip", "ghost", "house with garden")
"""What the sheet shows where nothing else is asked for: words that the embedded model knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetImages:
    """One preset's pictures, the seconds each took, and how often the UNet was asked for each."""

    pictures: tuple[Pixels, ...] = field(repr=False)
    seconds: float
    model_calls: int


def generate_by_presets(
    pipeline: Pipeline,
    prompts: Sequence[str],
    presets: Sequence[str] = tuple(PRESETS),
    *,
    seed: int = 0,
    on_pictures: Callable[[int], None] = lambda count: None,
    clock: Callable[[], float] = time.perf_counter,
    **fields: Any,
) -> dict[str, PresetImages]:
    """Generate prompt i with seed + i by every preset, in turn; `fields` hold for all and win over the presets'. Raises
    `InvalidRequest` without a prompt."""
    if not prompts:
        raise InvalidRequest("there is nothing to paint: give a prompt")
    made: dict[str, list[Pixels]] = {name: [] for name in presets}
    seconds, calls = dict.fromkeys(presets, 0.0), dict.fromkeys(presets, 0)
    for i, prompt in enumerate(prompts):
        for name in presets:
            started = clock()
            generation = pipeline.generate(prompt, seed=seed + i, **with_preset({"preset": name, **fields}))
            seconds[name] += clock() - started
            calls[name] = generation.model_calls[0]
            made[name].append(np.asarray(generation.images[0]))
            on_pictures(1)
    return {
        name: PresetImages(pictures=tuple(made[name]), seconds=seconds[name] / len(prompts), model_calls=calls[name])
        for name in presets
    }


def measured(
    generated: Mapping[str, PresetImages],
    prompts: Sequence[str],
    *,
    networks: Sequence[Network] = (),
    reference: Sequence[Pixels] = (),
) -> dict[str, dict[str, float]]:
    """Numbers by preset: `seconds`, `time` (over exact's), `calls`, `psnr` and `ssim` to exact's pictures, and by each
    network `frechet/SPACE` and `kid/SPACE` to the `reference` pictures or, without them, to exact's; of a CLIP network
    `clip-score` and `clip-agreement`. `psnr` is the mean, infinite where all are equal."""
    exact = generated[EXACT]
    found: dict[str, dict[str, float]] = {
        name: {
            "seconds": one.seconds,
            "time": one.seconds / exact.seconds,
            "calls": one.model_calls,
            **{metric: float(np.mean(values)) for metric, values in compare(one.pictures, exact.pictures).items()},
        }
        for name, one in generated.items()
    }
    for network in networks:
        rows = {name: network.features(one.pictures) for name, one in generated.items()}
        real = network.features(reference) if reference else rows[EXACT]
        texts = network.texts(prompts) if isinstance(network, ClipFeatures) else None
        for name, features in rows.items():
            for space, values in features.items():
                if texts is not None:
                    found[name]["clip-score"] = float(cosines(values, texts).mean())
                    found[name]["clip-agreement"] = float(cosines(values, rows[EXACT][CLIP]).mean())
                elif len(values) > 1 and (reference or name != EXACT):
                    found[name][f"frechet/{space}"] = frechet_distance(Gaussian.of(values), Gaussian.of(real[space]))
                    found[name][f"kid/{space}"] = kid(values, real[space]).mean
    return found


def preset_sheet(generated: Mapping[str, PresetImages], prompts: Sequence[str], most: int = 12) -> Pixels:
    """A row a prompt, the first `most`; a column a preset, with its time and its likeness to exact above it."""
    exact = generated[EXACT]
    labels = []
    for name, one in generated.items():
        likeness = float(np.mean(compare(one.pictures, exact.pictures)["psnr"]))
        words = f"{one.seconds / exact.seconds:.2f}× the time, {likeness:.1f} dB" if name != EXACT else "1×"
        labels.append(f"{name}: {words}")
    rows = [[one.pictures[i] for one in generated.values()] for i in range(min(most, len(prompts)))]
    return contact_sheet(rows, x_labels=labels, y_labels=list(prompts[:most]))
